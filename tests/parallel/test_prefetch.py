"""run_prefetched is the plain loop over layers, and holds no more than two layers' parameters or
gradients at a time.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t6jax.parallel.prefetch import Transport, run_prefetched

TIMES = 16  # a layer's parameters to what a device stores of them


def gather(packed):
    """An all-gather from devices that all store the same; its transpose is a sum."""
    return jnp.tile(packed.reshape(4, -1), (TIMES, 1))


TRANSPORT = Transport(jnp.ravel, gather)


def block(params, carry):
    x, y = carry
    return x + jnp.sin(y @ params.T) @ params, jnp.cos(x)


def loop(block, transport, stacked, carry):
    for layer in stacked:
        carry = block(transport.gather(transport.pack(layer)), carry)
    return carry


def draw(layers, rows=3, width=32):
    keys = jax.random.split(jax.random.key(layers), 3)
    stacked = jax.random.normal(keys[0], (layers, 4, width)) / width
    return stacked, tuple(jax.random.normal(key, (rows, width)) for key in keys[1:])


@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("remat", [False, True])
def test_value_and_gradients_are_those_of_the_plain_loop(layers, remat):
    arguments = draw(layers)
    run = jax.checkpoint(block, prevent_cse=True) if remat else block
    found = [jax.jit(f, static_argnums=(0, 1)) for f in (run_prefetched, loop)]
    got, want = (f(run, TRANSPORT, *arguments) for f in found)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), got, want)
    total = lambda f: lambda *x: sum(jnp.sum(jnp.square(y)) for y in f(run, TRANSPORT, *x))
    got, want = (
        jax.jit(jax.grad(total(f), argnums=(0, 1)))(*arguments) for f in (run_prefetched, loop)
    )
    # sums of TIMES x rows products in another order, at most
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max()),
        got,
        want,
    )


def gradient(f, layers, block):
    total = lambda *x: sum(jnp.sum(y) for y in f(block, TRANSPORT, *x))
    return jax.jit(jax.grad(total, argnums=(0, 1))).trace(*draw(layers, width=4096)).lower()


def test_parameters_and_gradients_of_two_layers_at_a_time_are_in_memory():
    memory = lambda layers: (
        gradient(run_prefetched, layers, jax.checkpoint(block))
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )
    of_a_layer = TIMES * 4 * 4096 * 4
    # another layer adds a few rows for the backward pass, and its shard of the gradient
    assert memory(9) - memory(3) < 6 * of_a_layer / 4


def test_nothing_that_leaves_a_barrier_is_unused():
    """XLA drops it, and what was to wait for it no longer does."""
    text = gradient(run_prefetched, 4, block).as_text()
    barriers = [line.strip() for line in text.splitlines() if "optimization_barrier" in line]
    # between 4 layers: forward, and backward for parameters and for gradients
    assert len(barriers) == 3 * 3
    for line in barriers:
        name, count = line.split(" = ")[0].split(":")
        assert int(count) == 4  # two arrays of the carry, and two that wait or are waited for
        for k in range(4):
            assert re.search(rf"{name}#{k}\b", text)


def test_no_tracer_leaks():
    with jax.checking_leaks():
        gradient(run_prefetched, 2, block)
