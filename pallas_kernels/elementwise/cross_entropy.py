"""Cross-entropy and its gradient from the logits, which are read from memory once and a second time
from the cache (Triton).
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

NUMBERS, WARPS = 4096, 8  # of a row that a program works on at a time


def cross_entropy_gradient(logits, targets, dtype, *, interpret=False):
    """(losses [N], gradient [N, V]): -log softmax(logits)[target] in nats, and softmax(logits) less
    1 at the target.

    logits   [N, V], float32
    targets  [N], integers 0 .. V-1
    dtype    the gradient's; the losses are float32
    """
    rows, width = logits.shape
    return pl.pallas_call(
        functools.partial(_kernel, width=width),
        grid=(rows,),
        out_shape=(
            jax.ShapeDtypeStruct((rows,), jnp.float32),
            jax.ShapeDtypeStruct((rows, width), dtype),
        ),
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="cross_entropy_gradient",
    )(logits, targets.astype(jnp.int32))


def _kernel(logits, targets, loss, grad, *, width):
    row = pl.program_id(0)
    target = targets[row]
    steps = pl.cdiv(width, NUMBERS)

    def chunk(i):
        places = i * NUMBERS + jnp.arange(NUMBERS)
        there = places < width
        return places, there, plgpu.load(logits.at[row, places], mask=there, other=-jnp.inf)

    def normalizer(i, carry):
        highest, total = carry
        _, _, x = chunk(i)
        higher = jnp.maximum(highest, jnp.max(x))
        return higher, total * jnp.exp(highest - higher) + jnp.sum(jnp.exp(x - higher))

    start = jnp.float32(-jnp.inf), jnp.float32(0)
    highest, total = jax.lax.fori_loop(0, steps, normalizer, start)
    lse = highest + jnp.log(total)

    def gradient(i, wanted):
        # from the end of the row, which was read last and is likeliest to be in the cache
        places, there, x = chunk(steps - 1 - i)
        hit = places == target
        plgpu.store(
            grad.at[row, places],
            (jnp.exp(x - lse) - jnp.where(hit, 1.0, 0.0)).astype(grad.dtype),
            mask=there,
        )
        return wanted + jnp.sum(jnp.where(hit, x, 0.0))

    wanted = jax.lax.fori_loop(0, steps, gradient, jnp.float32(0))
    loss[row] = lse - wanted
