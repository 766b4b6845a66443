"""What lies between a block's matrix products, in one pass over memory each (Triton).

`add_norm` is bound by reading two arrays and writing two, its gradient by reading three and writing
one; the gradient of SwiGLU's gate by reading three and writing two.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

WIDEST_ROW = 16384  # that add_norm's program holds in its registers
NUMBERS = 2048  # that a program of swiglu_gradient works on


def add_norm(x, update, epsilon, *, interpret=False):
    """(x + update, that over the root of its mean square), [N, D] each, of x and update [N, D].

    Both have x's dtype; the norm is computed in float32 from the rounded sum. epsilon is added to
    the mean square.
    """
    same = jax.ShapeDtypeStruct(x.shape, x.dtype)
    kernel = functools.partial(_add_norm_kernel, epsilon=epsilon, width=x.shape[1])
    return _by_row(kernel, x.shape, (same, same), "add_norm", interpret)(x, update)


def add_norm_gradient(total, total_grad, normed_grad, epsilon, *, interpret=False):
    """The gradient of x, which is that of update, [N, D], from total = x + update [N, D] and the
    gradients of both results.
    """
    same = jax.ShapeDtypeStruct(total.shape, total.dtype)
    kernel = functools.partial(_add_norm_gradient_kernel, epsilon=epsilon, width=total.shape[1])
    return _by_row(kernel, total.shape, same, "add_norm_gradient", interpret)(
        total, total_grad, normed_grad
    )


def swiglu_gradient(gate, up, grad, *, interpret=False):
    """The gradients of gate and up [N, W] from that of silu(gate) * up [N, W], computed in float32,
    in gate's dtype.
    """
    size = gate.size
    same = jax.ShapeDtypeStruct((size,), gate.dtype)
    call = pl.pallas_call(
        functools.partial(_swiglu_gradient_kernel, size=size),
        grid=(pl.cdiv(size, NUMBERS),),
        out_shape=(same, same),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="swiglu_gradient",
    )
    return tuple(x.reshape(gate.shape) for x in call(*(x.reshape(size) for x in (gate, up, grad))))


def _by_row(kernel, shape, out_shape, name, interpret):
    return pl.pallas_call(
        kernel,
        grid=(shape[0],),
        out_shape=out_shape,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name=name,
    )


def _row(width):
    """The places of a row, a power of two of them, and which are there."""
    places = jnp.arange(pl.next_power_of_2(width))
    return places, places < width


def _load(ref, *place, mask):
    return plgpu.load(ref.at[place], mask=mask, other=0).astype(jnp.float32)


def _add_norm_kernel(x, update, total, normed, *, epsilon, width):
    token, (places, there) = pl.program_id(0), _row(width)
    value = (_load(x, token, places, mask=there) + _load(update, token, places, mask=there)).astype(
        total.dtype
    )
    plgpu.store(total.at[token, places], value, mask=there)
    wide = value.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.sum(wide * wide) / width + epsilon)
    plgpu.store(normed.at[token, places], (wide * scale).astype(normed.dtype), mask=there)


def _add_norm_gradient_kernel(total, total_grad, normed_grad, out, *, epsilon, width):
    token, (places, there) = pl.program_id(0), _row(width)
    wide, g = _load(total, token, places, mask=there), _load(normed_grad, token, places, mask=there)
    scale = jax.lax.rsqrt(jnp.sum(wide * wide) / width + epsilon)
    along = jnp.sum(g * wide) * scale * scale / width
    value = _load(total_grad, token, places, mask=there) + scale * (g - wide * along)
    plgpu.store(out.at[token, places], value.astype(out.dtype), mask=there)


def _swiglu_gradient_kernel(gate, up, grad, gate_grad, up_grad, *, size):
    places = pl.program_id(0) * NUMBERS + jnp.arange(NUMBERS)
    there = places < size
    a, b, g = (_load(ref, places, mask=there) for ref in (gate, up, grad))
    s = 1 / (1 + jnp.exp(-a))
    plgpu.store(
        gate_grad.at[places], (g * b * s * (1 + a * (1 - s))).astype(gate_grad.dtype), mask=there
    )
    plgpu.store(up_grad.at[places], (g * a * s).astype(up_grad.dtype), mask=there)
