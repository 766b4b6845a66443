"""What the paper proves of the mechanisms: appendix A, Theorems 3.1 and E.1; and how their
parameters init.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t6jax.attention import MECHANISMS, Attention, AttentionConfig
from t6jax.ops.rope import RoPE
from t6jax.ops.tensor_product import combine, vec
from tests.attention.cases import CASES, D_MODEL, arange_positions, build, case, hidden_states

EPSILON = np.finfo(np.float32).eps


def start(config: AttentionConfig) -> Attention:
    """The module as it is before training."""
    # a generator that compiles fast
    rngs = lambda: nnx.Rngs(jax.random.key(0, impl="unsafe_rbg"))
    return nnx.jit(
        lambda: config.build(
            D_MODEL, rope=RoPE(), dtype="float32", param_dtype="float32", rngs=rngs()
        )
    )()


def selector(ranks: int, heads: int) -> jax.Array:
    """The A factors of appendix A, times R for the 1/R of eq. 3.1: row r selects the r-th of R
    equal groups of heads.
    """
    return ranks * jnp.repeat(jnp.eye(ranks), heads // ranks, axis=1)


@pytest.mark.parametrize(("name", "groups"), [("mha", 6), ("gqa", 3), ("mqa", 1)])
def test_appendix_a_dense_attention_is_non_contextual_tpa(name, groups):
    h, d_h = 6, 4
    native = build(
        MECHANISMS[name](
            num_heads=h, head_dim=d_h, **({"num_kv_heads": 3} if name == "gqa" else {})
        )
    )
    tpa = build(
        MECHANISMS["tpa_nonctx_a"](
            num_heads=h, head_dim=d_h, rank_q=h, rank_k=groups, rank_v=groups
        )
    )
    tpa.w_a_q[...] = selector(h, h)
    tpa.w_a_k[...] = tpa.w_a_v[...] = selector(groups, h)
    # W^Q is [d_model, h, d_h], and the B factors' map is [d_model, R, d_h]
    tpa.w_b_q[...], tpa.w_b_k[...], tpa.w_b_v[...] = (
        native.w_q[...],
        native.w_k[...],
        native.w_v[...],
    )
    tpa.w_o[...] = native.w_o[...]
    assert tpa.config.cached_numbers_per_token == native.config.cached_numbers_per_token

    @jax.jit
    def run(module, x):
        out, entry = module(x[:, :-1], arange_positions(x[:, :-1]))
        cache = module.empty_cache(2, 8).append(entry, jnp.zeros(2, jnp.int32))
        # decoded from position 5 in one sequence and 2 in the other
        return out, module.extend(x[:, -1:], cache, jnp.array([6, 3]))[0]

    x = hidden_states(2, 6)
    for got, want in zip(run(tpa, x), run(native, x), strict=True):
        # the same products and sums but for terms that are zero and factors h / h
        np.testing.assert_allclose(
            got, want, rtol=0, atol=16 * D_MODEL * EPSILON * np.abs(want).max()
        )


def rotation(positions: int, dim: int) -> np.ndarray:
    """R_t of section H.5 for each position t, [T, D, D], float64, for the published pairing (i, i +
    D/2).
    """
    half = dim // 2
    angle = positions * 10000.0 ** (-np.arange(half) / half)
    r = np.zeros((dim, dim))
    i = np.arange(half)
    # y = R x with y1 = x1 cos + x2 sin, y2 = -x1 sin + x2 cos
    r[i, i] = r[i + half, i + half] = np.cos(angle)
    r[i, i + half], r[i + half, i] = np.sin(angle), -np.sin(angle)
    return r


def test_theorem_3_1_rotating_b_rotates_the_query_and_scores_depend_on_the_distance():
    random = np.random.default_rng(0)
    (a_q, a_k), (b_q, b_k) = random.standard_normal((2, 3, 5)), random.standard_normal((2, 3, 8))
    as_jax = lambda x: jnp.asarray(x, jnp.float32)
    at = lambda t, a, b: combine(
        as_jax(a)[None, None], RoPE()(as_jax(b)[None, None], jnp.array([[t]]))
    )[0, 0]
    scores = {}
    for t, s in [(9, 4), (5, 0), (25, 20), (4, 9)]:
        q, k = at(t, a_q, b_q), at(s, a_k, b_k)
        dense_q = a_q.T @ b_q / 3 @ rotation(t, 8).T
        # the angle itself is rounded: t epsilon of it, on top of the sums' rounding
        np.testing.assert_allclose(
            q, dense_q, rtol=0, atol=(t + 16) * EPSILON * np.abs(dense_q).max()
        )
        scores[t, s] = np.asarray(q) @ np.asarray(k).T
    largest = np.abs(scores[9, 4]).max()
    np.testing.assert_allclose(scores[5, 0], scores[9, 4], rtol=0, atol=64 * EPSILON * largest)
    np.testing.assert_allclose(scores[25, 20], scores[9, 4], rtol=0, atol=128 * EPSILON * largest)
    relative = (a_q.T @ b_q / 3 @ rotation(5, 8).T) @ (a_k.T @ b_k / 3).T
    np.testing.assert_allclose(scores[9, 4], relative, rtol=0, atol=64 * EPSILON * largest)
    assert np.abs(scores[4, 9] - scores[9, 4]).max() > 0.1 * largest, "the distance's sign counts"


@pytest.mark.parametrize("name", [*MECHANISMS, "tpa shared B", "tpa_order3 shared B"])
def test_only_distances_between_positions_count(name):
    module, x = build(CASES[name]), hidden_states(2, 6)
    run = jax.jit(lambda positions: module(x, positions)[0])
    near, far = run(arange_positions(x)), run(arange_positions(x) + 9)
    # angles up to 15 are rounded to 15 epsilon, and scores of a few units with them
    np.testing.assert_allclose(far, near, rtol=0, atol=128 * EPSILON * np.abs(near).max())
    assert np.abs(run(2 * arange_positions(x)) - near).max() > 1e-3, "and they do count"


def test_theorem_e_1_rope_on_b_is_rope_on_the_whole():
    random = np.random.default_rng(1)
    a, b, c = (random.standard_normal((3, n)) for n in (5, 4, 3))
    # vec stacks the columns of b c^T; rows of Q are such vectors, times T_t = I (x) R_t^T
    stacked = np.stack([np.outer(b[r], c[r]).flatten(order="F") for r in range(3)])
    as_jax = lambda x: jnp.asarray(x, jnp.float32)[None, None]
    for t in (0, 1, 17):
        want = a.T @ stacked / 3 @ np.kron(np.eye(3), rotation(t, 4).T)
        got = combine(as_jax(a), vec(RoPE()(as_jax(b), jnp.array([[t]])), as_jax(c)))[0, 0]
        np.testing.assert_allclose(got, want, rtol=0, atol=(t + 16) * EPSILON * np.abs(want).max())


def test_a_third_order_layer_is_the_second_order_layer_of_its_combined_factors():
    third = build(case("tpa_order3"))
    x = hidden_states(2, 6)
    query, entry = third.project(x, arange_positions(x))
    assert query.b.shape[-1] == 6 and entry.b_k.shape[-1] == 2 and entry.c_k.shape[-1] == 3
    features = third.key_value_factors(entry, arange_positions(x))
    want = np.einsum("btri,btrj->btrji", entry.b_k, entry.c_k).reshape(features.b_k.shape)
    np.testing.assert_array_equal(features.b_k, want)


@pytest.mark.parametrize("name", ["tpa_kvonly", "tpa_order3"])
@pytest.mark.parametrize("init", ["xavier", "xavier_three_axes"])
def test_factor_maps_start_within_xaviers_bound(name, init):
    config = case(name, init=init, rank_k=4)
    module = start(config)
    h, d_b = config.num_heads, config.b_dim
    bounds = {
        "xavier": {"w_a_k": 6 / (D_MODEL + 4 * h), "w_b_k": 6 / (D_MODEL + 4 * d_b)},
        # PyTorch's Xavier on (d_model, h, R) and (d_model, R, d_h): fans are the first two axes
        # times the third
        "xavier_three_axes": {"w_a_k": 6 / (4 * (D_MODEL + h)), "w_b_k": 6 / (d_b * (D_MODEL + 4))},
    }[init]
    for key, square in bounds.items():
        largest = np.abs(getattr(module, key)[...]).max()
        assert 0.95 * square**0.5 < largest <= square**0.5


def test_the_dense_queries_of_tpa_kvonly_start_within_xaviers_bound():
    config = case("tpa_kvonly", num_heads=8, head_dim=16)
    largest = np.abs(start(config).w_q[...]).max()
    bound = (6 / (D_MODEL + 8 * 16)) ** 0.5
    assert 0.95 * bound < largest <= bound


@pytest.mark.parametrize(("name", "key"), [("tpa_nonctx_a", "w_a_k"), ("tpa_nonctx_b", "w_b_k")])
def test_non_contextual_factors_start_with_the_variance_of_contextual_ones(name, key):
    sizes = {"num_heads": 64, "head_dim": 64, "rank_k": 8}
    fixed = getattr(start(case(name, **sizes)), key)[...]
    contextual = jnp.einsum(
        "btd,drs->btrs", hidden_states(8, 32), getattr(start(case("tpa", **sizes)), key)[...]
    )
    # the spread of 512 draws is known to within 4 standard errors, 4 / sqrt(2 x 512), and so is the
    # map's of 24 inputs
    assert 0.75 < float(jnp.std(fixed) / jnp.std(contextual)) < 1.33


@pytest.mark.parametrize("name", ["tpa_kvonly", "gqa", "mla", "mfa"])
def test_output_projections_start_at_zero_and_norms_at_one(name):
    module = start(case(name, head_norm=True))
    assert not np.any(module.w_o[...]) and np.all(np.asarray(module.head_norm[...]) == 1)
    for key, param in nnx.to_pure_dict(nnx.state(module)).items():
        if key.endswith("_norm"):
            assert np.all(np.asarray(param) == 1)
        elif key != "w_o":
            assert 0.5 < np.std(param) * param.shape[0] ** 0.5 < 1.5, (
                f"{key} keeps its input's scale"
            )
