"""The gate of SwiGLU."""

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pallas_kernels.elementwise.swiglu import swiglu_gradient
from t6jax.ops.names import GATE, UP
from t6jax.ops.on_gpu import takes_kernels
from t6jax.ops.precision import at_least_float32


def swiglu(
    gate: Float[Array, "*batch width"], up: Float[Array, "*batch width"]
) -> Float[Array, "*batch width"]:
    """silu(gate) * up, computed in float32, in up's dtype.

    Its gradient keeps gate and up alone: left to itself, differentiation keeps the sigmoid too, one
    more array of the widest kind that there is in a block.
    """
    return _swiglu(checkpoint_name(gate, GATE), checkpoint_name(up, UP))


@jax.custom_vjp
def _swiglu(gate, up):
    wide = at_least_float32(gate)
    return (wide * jax.nn.sigmoid(wide) * at_least_float32(up)).astype(up.dtype)


def _backward(residuals, g):
    gate, up = residuals
    if takes_kernels(gate.dtype, gate):
        flat = (x.reshape(-1, x.shape[-1]) for x in (gate, up, g))
        return tuple(x.reshape(gate.shape) for x in swiglu_gradient(*flat))
    wide_gate, wide_up, wide_g = (at_least_float32(x) for x in (gate, up, g))
    s = jax.nn.sigmoid(wide_gate)
    d_gate = wide_g * wide_up * s * (1 + wide_gate * (1 - s))
    return d_gate.astype(gate.dtype), (wide_g * wide_gate * s).astype(up.dtype)


def _forward(gate, up):
    return _swiglu(gate, up), (gate, up)


_swiglu.defvjp(_forward, _backward)
