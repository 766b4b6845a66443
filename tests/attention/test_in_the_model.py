"""The model, its caches and generation take every mechanism by its name in the config."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t6jax import T6, ModelConfig, generate
from t6jax.attention import MECHANISMS
from t6jax.model import abstract
from tests.attention.cases import case


def small_model(name: str, **settings) -> T6:
    """Two layers whose parameters, output projections included, are drawn at random."""
    attention = {"name": name} | dataclasses.asdict(case(name))
    values = {
        "vocab_size": 17,
        "num_layers": 2,
        "d_model": 24,
        "context_length": 12,
        "dtype": "float32",
    }
    graph, state = nnx.split(
        abstract(ModelConfig.from_dict(values | {"attention": attention} | settings))
    )
    random = np.random.default_rng(0)
    return nnx.merge(
        graph,
        jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape) / 4, x.dtype), state),
    )


# each time: those whose caches hold the most different things. test_decode_equals_forward has all
@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("tpa", "tpa_nonctx_b", "mla", "gqa")
        else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in MECHANISMS
    ],
)
def test_generation_is_the_full_forwards_likeliest_token_each_time(name):
    model = small_model(name)
    forward = jax.jit(lambda model, tokens: model(tokens))
    prompts = [[3, 1, 4, 1, 5], [9]]
    for prompt, made in zip(prompts, generate(model, prompts, 4), strict=True):
        row = np.zeros((1, 12), np.int32)
        row[0, : len(prompt)] = prompt
        for n, token in enumerate(made, start=len(prompt)):
            assert token == int(jnp.argmax(forward(model, row)[0, n - 1]))
            row[0, n] = token


@pytest.mark.parametrize("name", MECHANISMS)
def test_prefill_and_extend_work_in_place_on_donated_caches(name):
    """A cache holds what is cached and nothing else: no parameter is donated with it."""
    graph, state = nnx.split(small_model(name).unstacked())
    run = lambda method: jax.jit(
        lambda state, *arguments: getattr(nnx.merge(graph, state), method)(*arguments),
        donate_argnums=3,
    )
    prefill, extend = run("prefill"), run("extend")
    pointers = lambda caches: {x.unsafe_buffer_pointer() for x in jax.tree.leaves(caches)}
    tokens, lengths = jnp.array([[3, 1, 4], [1, 5, 0]]), jnp.array([3, 2])
    first = []
    for _ in range(2):  # the second time with the same parameters
        caches = nnx.merge(graph, state).empty_caches(2, 12)
        before = pointers(caches)
        _, caches = prefill(state, tokens, lengths, caches)
        logits, caches = extend(state, jnp.array([[9], [2]]), lengths + 1, caches)
        assert pointers(caches) == before
        first.append(logits)
    np.testing.assert_array_equal(*first)


# tests/parallel/test_remat.py counts what each mechanism makes again
@pytest.mark.parametrize(
    "name", ["tpa_nonctx_b", pytest.param("tpa_order3", marks=pytest.mark.exhaustive), "mla"]
)
def test_remat_changes_no_gradient(name):
    tokens = jnp.arange(12).reshape(2, 6) % 17
    grads = []
    for remat in ("none", "full"):
        graph, state = nnx.split(small_model(name, remat=remat))
        loss = lambda state, graph=graph: jnp.mean(jnp.square(nnx.merge(graph, state)(tokens)))
        grads.append(jax.jit(jax.grad(loss))(state))
    for kept, again in zip(*map(jax.tree.leaves, grads), strict=True):
        assert float(jnp.abs(kept).max()) > 0
        np.testing.assert_allclose(kept, again, rtol=0, atol=1e-5 * float(jnp.abs(kept).max()))
