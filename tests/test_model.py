"""T6: causal, the same stacked or not, the same whole or token by token, with the paper's number of
parameters.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t6jax import T6, ModelConfig
from t6jax.model import abstract
from tests.conftest import TINY

EPSILON = np.finfo(np.float32).eps
# compiled as one program, once for all tests with the same shapes
run = jax.jit(lambda model, tokens: model(tokens))


@pytest.fixture(scope="module")
def model() -> T6:
    return lively(T6(ModelConfig.from_dict(TINY), rngs=nnx.Rngs(0)))


def lively(model: T6) -> T6:
    """The model with output projections that are not zero, so that all of it affects the logits."""
    graph, state = nnx.split(model)
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        jax.random.normal(k, x.shape) * 0.3 if not x.any() else x
        for k, x in zip(keys, leaves, strict=True)
    ]
    return nnx.merge(graph, jax.tree.unflatten(structure, leaves))


def tokens(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, TINY["vocab_size"], shape))


def close(x, y):
    # each of 3 layers rounds sums of up to 64 terms a few times; errors add up over the residual
    # stream
    np.testing.assert_allclose(x, y, rtol=0, atol=3 * 4 * 64 * EPSILON * float(jnp.abs(y).max()))


def test_the_parameters_are_as_many_as_the_config_says(model):
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model))) == model.config.parameter_count


def test_a_token_sees_nothing_of_what_follows(model):
    first = tokens((2, 12))
    second = first.at[:, 7:].set((first[:, 7:] + 1) % TINY["vocab_size"])
    a, b = run(model, first), run(model, second)
    np.testing.assert_array_equal(a[:, :7], b[:, :7])
    assert jnp.abs(a[:, 7:] - b[:, 7:]).max() > 0.1


def test_logits_are_float32_whatever_the_computation(model):
    half = T6(ModelConfig.from_dict(TINY | {"dtype": "bfloat16"}), rngs=nnx.Rngs(0))
    half = nnx.merge(nnx.graphdef(half), nnx.state(model))
    out, exact = run(half, tokens((2, 12))), run(model, tokens((2, 12)))
    assert out.dtype == jnp.float32
    # bfloat16 rounds each of some 10 steps a layer to 2^-9; errors of independent steps add up as
    # their root
    error = jnp.linalg.norm(out - exact) / jnp.linalg.norm(exact)
    assert 2**-9 < error < 2**-9 * np.sqrt(3 * 10) * 4


def test_unstacked_layers_give_the_same_logits(model):
    close(run(model.unstacked(), tokens((2, 12))), run(model, tokens((2, 12))))


def loss_and_gradient(model, **changes):
    rows, graph = tokens((2, 13)), nnx.graphdef(abstract(ModelConfig.from_dict(TINY | changes)))
    loss = lambda state: nnx.merge(graph, state).loss(rows[:, :-1], rows[:, 1:])
    return jax.jit(jax.value_and_grad(loss))(nnx.state(model))


@pytest.fixture(scope="module")
def plain(model):
    return loss_and_gradient(model)


@pytest.mark.parametrize(
    "changes",
    [{"remat": "dots"}, {"remat": "full"}, {"unroll": True}, {"remat": "dots", "unroll": True}],
)
def test_rematerialisation_and_unrolling_change_no_gradient(model, plain, changes):
    jax.tree.map(close, loss_and_gradient(model, **changes), plain)


@pytest.mark.parametrize("stacked", [True, False])
def test_prefill_and_decoding_token_by_token_is_the_full_forward(model, stacked):
    model = model if stacked else model.unstacked()
    rows, full = tokens((3, 20)), run(model, tokens((3, 20)))
    lengths = jnp.array([1, 5, 12])
    logits, caches = jax.jit(lambda *args: model.prefill(*args))(
        rows[:, :12], lengths, model.empty_caches(3, 20)
    )
    extend = jax.jit(lambda *args: model.extend(*args))
    each = jnp.arange(3)
    close(logits, full[each, lengths - 1])
    for _ in range(8):
        lengths = lengths + 1
        logits, caches = extend(rows[each, lengths - 1][:, None], lengths, caches)
        close(logits[:, 0], full[each, lengths - 1])


def test_several_new_tokens_at_once_is_the_full_forward(model):
    rows, full = tokens((2, 16)), run(model, tokens((2, 16)))
    # not compiled as a whole, as all may be used
    _, caches = model.prefill(rows[:, :9], jnp.array([9, 4]), model.empty_caches(2, 16))
    lengths = jnp.array([13, 8])
    new = jnp.stack([rows[0, 9:13], rows[1, 4:8]])
    logits, _ = model.extend(new, lengths, caches)
    close(logits, jnp.stack([full[0, 9:13], full[1, 4:8]]))


def test_segments_do_not_see_each_other(model):
    rows = tokens((1, 12))
    segment_ids, positions = jnp.array([[0] * 5 + [1] * 7]), jnp.array([[*range(5), *range(7)]])
    together = model(rows, positions=positions, segment_ids=segment_ids)  # not compiled as a whole
    close(together[:, :5], run(model, rows[:, :5]))
    close(together[:, 5:], run(model, rows[:, 5:]))


def test_the_tied_embeddings_gradient_is_that_of_both_of_its_uses(model):
    rows, graph, state = tokens((2, 13)), nnx.graphdef(model), nnx.state(model)
    inputs, targets = rows[:, :-1], rows[:, 1:]
    table = jnp.asarray(state["embedding"][...])

    def with_head(state, table):
        """The loss where the head reads another table than the first layer does."""
        logits = nnx.merge(graph, state).hidden(inputs) @ table.T
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()

    first, head = jax.jit(jax.grad(with_head, argnums=(0, 1)))(state, table)
    first = first["embedding"][...]
    both = jax.jit(jax.grad(lambda s: nnx.merge(graph, s).loss(inputs, targets)))(state)
    assert min(jnp.linalg.norm(g) for g in (first, head)) > 0.1 * jnp.linalg.norm(first + head)
    close(both["embedding"][...], first + head)


def test_a_model_for_decoding_holds_its_parameters_in_the_computations_dtype(model):
    half = T6(ModelConfig.from_dict(TINY | {"dtype": "bfloat16"}), rngs=nnx.Rngs(0))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    for form in (half.unstacked(), half.in_compute_dtype()):
        assert {x.dtype for x in jax.tree.leaves(nnx.state(form))} == {jnp.dtype("bfloat16")}


def test_weights_depend_on_the_seed_alone():
    make = lambda seed: nnx.state(T6(ModelConfig.from_dict(TINY), rngs=nnx.Rngs(seed)))
    jax.tree.map(np.testing.assert_array_equal, make(3), make(3))
    assert not np.array_equal(make(3)["embedding"][...], make(4)["embedding"][...])


def test_a_frequent_tokens_gradient_is_not_summed_in_bfloat16():
    rows = jnp.where(jax.random.uniform(jax.random.key(0), (32, 32)) < 0.5, 7, tokens((32, 32)))
    config = lambda dtype: ModelConfig.from_dict(TINY | {"dtype": dtype, "num_layers": 1})
    state = nnx.state(lively(T6(config("float32"), rngs=nnx.Rngs(0))))

    def gradient(dtype):
        graph = nnx.graphdef(abstract(config(dtype)))
        loss = lambda s: jnp.mean(nnx.merge(graph, s)(rows) ** 2)
        return jax.jit(jax.grad(loss))(state)["embedding"][...][7]

    exact = gradient("float32")
    error = jnp.linalg.norm(gradient("bfloat16") - exact) / jnp.linalg.norm(exact)
    # half a bfloat16 ulp for each of some 10 roundings on the way; a bfloat16 sum of 500 terms
    # would lose 2^-9 * 500 / 2
    assert error < 10 * 2**-9


def test_compiled_size_does_not_grow_with_depth():
    def operations(layers):
        model = abstract(ModelConfig.from_dict(TINY | {"num_layers": layers}))
        graph, state = nnx.split(model)
        return len(
            jax.jit(lambda s, t: nnx.merge(graph, s)(t))
            .lower(state, tokens((1, 8)))
            .as_text()
            .splitlines()
        )

    assert operations(48) == operations(2)


def test_the_loss_is_the_cross_entropy_of_the_logits(model):
    rows = tokens((2, 9))
    logits = run(model, rows[:, :-1])
    want = -jnp.take_along_axis(jax.nn.log_softmax(logits), rows[:, 1:, None], axis=-1).mean()
    close(model.loss(rows[:, :-1], rows[:, 1:]), want)


def test_the_embedding_starts_as_published():
    """U(-b, b) with b = d_model**-0.5, from which the head's logits begin at order 1."""
    config = ModelConfig.from_dict(TINY | {"vocab_size": 500, "num_layers": 1})
    largest = float(jnp.abs(T6(config, rngs=nnx.Rngs(0)).embedding[...]).max())
    assert 0.99 * 24**-0.5 < largest <= 24**-0.5  # the largest of 12,000 uniform draws
