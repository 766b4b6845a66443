"""On an NVIDIA GPU: where devices split the sequence, each one's two chunks give its part of eq.
3.2 and of its gradient.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.forward import attention_forward
from pallas_kernels.attention.gradient import attention_gradient
from t6jax.ops.attention import causal_attention
from tests.gpu.test_attention_forward import exact
from tests.gpu.test_attention_gradient import distances, draw, gradients


@pytest.mark.parametrize(
    "shape, devices",
    [((2, 512, 3), 1), ((2, 1024, 47), 2), ((1, 1536, 5), 3), ((3, 2048, 7), 4), ((1, 8192, 3), 2)],
)
def test_the_chunks_of_all_devices_make_up_the_whole(shape, devices):
    query, key, value, grad = draw(shape, jnp.bfloat16)
    want_out = exact(*(x.astype(jnp.float32) for x in (query, key, value)), 0.125)[0]
    want = gradients(
        lambda *x: exact(*x)[0], *(x.astype(jnp.float32) for x in (query, key, value)), grad, 0.125
    )
    chunks_of = lambda x: jnp.split(x, 2 * devices, axis=1)
    out, dq, sums = [None] * 2 * devices, [None] * 2 * devices, [0.0, 0.0]

    @jax.jit
    def attend(numbers, grad, *arrays):
        options = {"chunks": tuple(numbers), "scale": 0.125, "implementation": "mosaic_gpu"}
        got, back = jax.vjp(lambda *x: causal_attention(*x, **options), *arrays)
        return got, *back(grad)

    for i in range(devices):
        numbers = i, 2 * devices - 1 - i
        own, own_grad = (
            jnp.concatenate([chunks_of(x)[n] for n in numbers], axis=1) for x in (query, grad)
        )
        (got, *results), again = (
            attend(jnp.array(numbers), own_grad, own, key, value) for _ in range(2)
        )
        assert all((x == y).all() for x, y in zip([got, *results], again, strict=True))
        for n, part, part_dq in zip(
            numbers, jnp.split(got, 2, axis=1), jnp.split(results[0], 2, axis=1), strict=True
        ):
            out[n], dq[n] = part, part_dq
        sums = [total + x.astype(jnp.float32) for total, x in zip(sums, results[1:], strict=True)]
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    # P, or dS, and what comes out are rounded once each (see the tests of the kernels); sums over
    # devices are of rounded parts, whose squares add up to about the whole's
    assert distances([jnp.concatenate(out, axis=1)], [want_out])[0] < 2 * eps / np.sqrt(12)
    assert max(distances([jnp.concatenate(dq, axis=1), *sums], want)) < 4 * eps / np.sqrt(12)


@pytest.mark.parametrize("group", [2, 3, 5])
@pytest.mark.parametrize("numbers", [(0, 5), (2, 3)])
def test_any_number_of_multiprocessors_may_share_a_head(numbers, group):
    """Chunks of four blocks of 24, columns that neither sees or both; five heads for two groups."""
    query, key, value, grad = draw((1, 3072, 5), jnp.bfloat16)
    own = jnp.concatenate([n * 512 + jnp.arange(512) for n in numbers])
    seen = (
        jnp.zeros_like(grad).at[:, own].set(grad[:, own])
    )  # other devices' queries ask for nothing
    want = gradients(
        lambda *x: exact(*x)[0], *(x.astype(jnp.float32) for x in (query, key, value)), seen, 0.125
    )
    numbers, query, grad = jnp.array(numbers), query[:, own], grad[:, own]
    out, lse = attention_forward(query, key, value, numbers, scale=0.125)
    gradient = jax.jit(
        functools.partial(attention_gradient, scale=0.125, sms=2 * group + 1, ctas_per_head=group)
    )
    got, again = (gradient(query, key, value, out, lse, grad, numbers) for _ in range(2))
    # rounded as the whole is, above
    assert max(distances(got, [want[0][:, own], *want[1:]])) < 4 * float(
        jnp.finfo(jnp.bfloat16).eps
    ) / np.sqrt(12)
    assert all((x == y).all() for x, y in zip(got, again, strict=True))
