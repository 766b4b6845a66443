"""TPA (eq. 3.1 to 3.6): the layer is the paper's equations, its counts are Table 1's, its start is
Xavier's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t6jax.attention import TPAConfig
from t6jax.errors import InputError
from t6jax.ops.rope import RoPE
from tests.attention.cases import build, case, hidden_states

EPSILON = np.finfo(np.float32).eps
D_MODEL = 24


def layer(config: TPAConfig, seed=0):
    module = config.build(
        D_MODEL, rope=RoPE(), dtype="float32", param_dtype="float32", rngs=nnx.Rngs(seed)
    )
    module.w_o[...] = jax.random.normal(jax.random.key(seed), module.w_o[...].shape) / 8
    return module


def test_the_layer_is_equations_3_1_to_3_3():
    config = TPAConfig(num_heads=5, head_dim=8, rank_q=3, rank_k=2, rank_v=1)
    module = layer(config)
    x = np.random.default_rng(0).standard_normal((2, 7, D_MODEL))
    positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
    out, _ = module(jnp.asarray(x, jnp.float32), positions)

    weights = {k: np.asarray(v, np.float64) for k, v in nnx.to_pure_dict(nnx.state(module)).items()}

    def build(name, rotate):
        total = 0.0
        rank = weights[f"w_a_{name}"].shape[1]
        for r in range(rank):
            a, b = x @ weights[f"w_a_{name}"][:, r], x @ weights[f"w_b_{name}"][:, r]
            b = (
                np.asarray(RoPE()(jnp.asarray(b, jnp.float32), positions), np.float64)
                if rotate
                else b
            )
            total = total + a[..., :, None] * b[..., None, :]
        return total / rank

    q, k, v = build("q", True), build("k", True), build("v", False)
    logits = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(8)
    logits = np.where(np.tril(np.ones((7, 7), bool)), logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    heads = np.einsum("bhts,bshd->bthd", p / p.sum(-1, keepdims=True), v)
    want = heads.reshape(2, 7, 40) @ weights["w_o"].reshape(40, D_MODEL)
    # sums of d_model, R, D, T and H D terms in turn, of numbers of a few units
    bound = 4 * EPSILON * (D_MODEL + 3 + 8 + 7 + 40) * np.abs(want).max()
    np.testing.assert_allclose(out, want, rtol=0, atol=bound)


@pytest.mark.parametrize("ranks", [(1, 1, 1), (6, 2, 3)])
@pytest.mark.parametrize("head_norm", [False, True])
def test_counts_are_table_1s_from_the_real_arrays(ranks, head_norm):
    config = TPAConfig(
        num_heads=7,
        head_dim=4,
        rank_q=ranks[0],
        rank_k=ranks[1],
        rank_v=ranks[2],
        head_norm=head_norm,
    )
    module = layer(config)
    assert sum(x.size for x in jax.tree.leaves(nnx.state(module))) == config.parameter_count(
        D_MODEL
    )
    cache = module.empty_cache(3, 10)
    assert (
        sum(x.size for x in jax.tree.leaves(cache.stored())) == 30 * config.cached_numbers_per_token
    )
    # the kernels want each rank's heads on 8 numbers and a token's row on 16: zeros, never read
    padding = sum(x.size for x in jax.tree.leaves(cache)) / 30 - config.cached_numbers_per_token
    assert 0 <= padding < 16 + 8 * (config.rank_k + config.rank_v)
    assert config.cached_numbers_per_token == (ranks[1] + ranks[2]) * (7 + 4)


def test_both_readings_of_xavier():
    wide = lambda init: layer(TPAConfig(num_heads=11, head_dim=8, rank_q=5, init=init)).w_a_q[...]
    for init, bound in (
        ("xavier", np.sqrt(6 / (D_MODEL + 5 * 11))),
        ("xavier_three_axes", np.sqrt(6 / (5 * (11 + D_MODEL)))),
    ):
        largest = float(jnp.abs(wide(init)).max())
        assert 0.95 * bound < largest <= bound  # the largest of 1,320 uniform draws


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rank_q": 0}, "attention.rank_q"),
        ({"rank_k": -1}, "attention.rank_k"),
        ({"rank_v": 1.5}, "attention.rank_v"),
        ({"head_dim": 7}, "attention.head_dim must be even"),
        ({"num_heads": 0}, "attention.num_heads"),
        ({"init": "zero"}, "attention.init must be one of xavier, xavier_three_axes"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_wrong_settings_are_named(settings, named):
    with pytest.raises(InputError, match=named):
        TPAConfig(**({"num_heads": 5, "head_dim": 8} | settings))


@pytest.mark.parametrize("name", ["tpa", "tpa_kvonly"])
def test_joined_factor_maps_change_nothing(name, monkeypatch):
    """Output, cache entries and gradients, of one matrix product for all factors and of one for
    each.
    """
    module, x = build(case(name)), hidden_states(2, 17)
    positions = jnp.broadcast_to(jnp.arange(17), (2, 17))
    graph, state = nnx.split(module)

    results = []
    for joined in (True, False):

        def run(state, x):
            out, entry = nnx.merge(graph, state)(x, positions)
            return jnp.sum(out**2), (out, entry)

        monkeypatch.setattr(
            "t6jax.attention.factored.worth_copying_weights", lambda x, joined=joined: joined
        )
        text = str(jax.make_jaxpr(run)(state, x))
        assert ("concatenate" in text.split("dot_general")[0]) is joined
        results.append(jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(state, x))
    # sums of up to 24 terms, rounded in another order a few times over
    close = lambda a, b: np.testing.assert_allclose(
        a, b, rtol=0, atol=24 * 16 * np.finfo(np.float32).eps * np.abs(b).max()
    )
    jax.tree.map(close, *results)
