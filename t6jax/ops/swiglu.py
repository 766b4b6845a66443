"""The gate of SwiGLU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.elementwise import swiglu_gradient
from t6jax.ops.on_gpu import takes_kernels
from t6jax.ops.precision import at_least_float32


@jax.custom_vjp
def swiglu(joined: Float[Array, "*batch 2W"]) -> Float[Array, "*batch W"]:
    """silu(gate) * up of joined = [gate, up], computed in float32, in joined's dtype.

    Its gradient keeps joined alone, where differentiation left to itself keeps the sigmoid too; on an NVIDIA GPU, in half
    precision, one kernel writes it.
    """
    gate, up = jnp.split(at_least_float32(joined), 2, axis=-1)
    return (gate * jax.nn.sigmoid(gate) * up).astype(joined.dtype)


def _backward(joined, g):
    if takes_kernels(joined.dtype, joined):
        flat = (x.reshape(-1, x.shape[-1]) for x in (joined, g))
        return (swiglu_gradient(*flat).reshape(joined.shape),)
    gate, up = jnp.split(at_least_float32(joined), 2, axis=-1)
    g = at_least_float32(g)
    s = jax.nn.sigmoid(gate)
    return (jnp.concatenate([g * up * s * (1 + gate * (1 - s)), g * gate * s], axis=-1).astype(joined.dtype),)


swiglu.defvjp(lambda joined: (swiglu(joined), joined), _backward)
