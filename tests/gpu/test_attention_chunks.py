"""On an NVIDIA GPU: where devices split the sequence, each one's two chunks give its part of eq. 3.2 and of its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t6jax.ops import causal_attention
from tests.gpu.test_attention_forward import exact
from tests.gpu.test_attention_gradient import distances, draw, gradients

BOTH = causal_attention.Kernels(forward=True, gradient=True)


@pytest.mark.parametrize(
    "shape, devices", [((2, 512, 3), 1), ((2, 1024, 47), 2), ((1, 1536, 5), 3), ((3, 2048, 7), 4), ((1, 8192, 3), 2)]
)
def test_the_chunks_of_all_devices_make_up_the_whole(shape, devices):
    query, key, value, grad = draw(shape, jnp.bfloat16)
    want_out = exact(*(x.astype(jnp.float32) for x in (query, key, value)), 0.125)[0]
    want = gradients(lambda *x: exact(*x)[0], *(x.astype(jnp.float32) for x in (query, key, value)), grad, 0.125)
    chunks_of = lambda x: jnp.split(x, 2 * devices, axis=1)
    out, dq, sums = [None] * 2 * devices, [None] * 2 * devices, [0.0, 0.0]

    @jax.jit
    def attend(numbers, grad, *arrays):
        got, back = jax.vjp(lambda *x: causal_attention._with_kernels(*x, numbers, 0.125, BOTH), *arrays)
        return got, *back(grad)

    for i in range(devices):
        numbers = i, 2 * devices - 1 - i
        own, own_grad = (jnp.concatenate([chunks_of(x)[n] for n in numbers], axis=1) for x in (query, grad))
        (got, *results), again = (attend(jnp.array(numbers), own_grad, own, key, value) for _ in range(2))
        assert all((x == y).all() for x, y in zip([got, *results], again, strict=True))
        for n, part, part_dq in zip(numbers, jnp.split(got, 2, axis=1), jnp.split(results[0], 2, axis=1), strict=True):
            out[n], dq[n] = part, part_dq
        sums = [total + x.astype(jnp.float32) for total, x in zip(sums, results[1:], strict=True)]
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    # P, or dS, and what comes out are rounded once each (see the tests of the kernels); sums over devices are of rounded parts,
    # whose squares add up to about the whole's
    assert distances([jnp.concatenate(out, axis=1)], [want_out])[0] < 2 * eps / np.sqrt(12)
    assert max(distances([jnp.concatenate(dq, axis=1), *sums], want)) < 4 * eps / np.sqrt(12)
