"""Gradients, and what half precision costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.attention.cases import CASES, arange_positions, build, hidden_states


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_gradients_equal_finite_differences_in_float64(config):
    with jax.enable_x64(True):
        graph, state = nnx.split(build(config, dtype="float64"))
        x = hidden_states(1, 3, dtype="float64")
        weights, seeds = hidden_states(1, 3, dtype="float64", seed=2), np.random.default_rng(3)

        @jax.jit
        @jax.value_and_grad
        def loss(arguments):
            state, x = arguments
            return jnp.sum(nnx.merge(graph, state)(x, arange_positions(x))[0] * weights)

        direction = jax.tree.map(lambda p: jnp.asarray(seeds.standard_normal(p.shape)), (state, x))
        along = lambda step: jax.tree.map(lambda p, d: p + step * d, (state, x), direction)
        slope = sum(
            jnp.vdot(g, d)
            for g, d in zip(*map(jax.tree.leaves, (loss((state, x))[1], direction)), strict=True)
        )
        step = 1e-6
        difference = (loss(along(step))[0] - loss(along(-step))[0]) / (2 * step)
        # central differences: an error of order step^2, and of 1e-16 / step by rounding, of a loss
        # and slope of order 10
        np.testing.assert_allclose(difference, slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_bfloat16_stays_within_its_precision(config):
    """Each of the at most 10 steps on the way from hidden state to output (maps, norms, rotation,
    products, probabilities, W^O) rounds to 8 bits, a relative error of 2^-9 each, and scores of
    order 1 turn theirs into as much of the probabilities; so the whole, as a norm, stays below 2 x
    10 x 2^-9 of the output."""
    graph, state = nnx.split(build(config, dtype="bfloat16", scale=0.7))
    x = hidden_states(2, 6, dtype="bfloat16")
    run = jax.jit(
        lambda graph, state, x: nnx.merge(graph, state)(x, arange_positions(x))[0], static_argnums=0
    )
    got = run(graph, state, x)
    assert got.dtype == jnp.bfloat16
    wide = nnx.split(build(config))[0]
    exact = np.asarray(
        run(wide, jax.tree.map(lambda p: p.astype(jnp.float32), state), x.astype(jnp.float32))
    )
    got = np.asarray(got, np.float64)
    assert np.linalg.norm(got - exact) < 20 * 2**-9 * np.linalg.norm(exact)
    # rounding to nearest favours neither side: along the output itself errors average out, those of
    # its 288 numbers to a fraction of 2^-9; what is left is that of few parameters
    assert abs(np.vdot(got, exact) / np.vdot(exact, exact) - 1) < 4 * 2**-9


@pytest.mark.parametrize(
    "name", ["tpa", "tpa_nonctx_b", "tpa shared B", "tpa_order3", "gqa", "mla"]
)
def test_bfloat16_decode_agrees_with_its_forward(name):
    """The two round at the same places but for the probabilities and the order of sums; see the
    bound above.
    """
    module = build(CASES[name], dtype="bfloat16", scale=0.7)
    x = hidden_states(2, 6, dtype="bfloat16")

    @jax.jit
    def both(x):
        full, entry = module(x, arange_positions(x))
        cache = module.empty_cache(2, 6).append(
            jax.tree.map(lambda e: e[:, :5], entry), jnp.zeros(2, jnp.int32)
        )
        return full[:, 5:], module.extend(x[:, 5:], cache, jnp.array([6, 6]))[0]

    full, decoded = (np.asarray(y, np.float32) for y in both(x))
    assert np.linalg.norm(full - decoded) < 20 * 2**-9 * np.linalg.norm(full)
