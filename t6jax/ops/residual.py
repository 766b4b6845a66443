"""The residual stream of a block: an update added, and the sum normed for what reads it next
(section 3.5).
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pallas_kernels.elementwise import add_norm as elementwise
from t6jax.ops.names import NORMED, RESIDUAL
from t6jax.ops.on_gpu import takes_kernels
from t6jax.ops.precision import at_least_float32

# RMSNorm's epsilon in the published code: the machine epsilon of the float32 that it is computed in
FLOAT32_EPSILON = float(jnp.finfo(jnp.float32).eps)


def rms_norm(
    x: Float[Array, "*batch D"],
    epsilon: float = FLOAT32_EPSILON,
    weight: Float[Array, "D"] | None = None,
) -> Float[Array, "*batch D"]:
    """x over the root of its mean square along the last axis, in float32, returned in x's dtype;
    then times the weight.
    """
    wide = at_least_float32(x)
    normed = (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)).astype(
        x.dtype
    )
    return normed if weight is None else normed * weight.astype(x.dtype)


def add_norm(
    x: Float[Array, "*batch D"], update: Float[Array, "*batch D"]
) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch D"]]:
    """x + update, and its RMSNorm. On an NVIDIA GPU, half precision goes through one kernel, its
    gradient through another.
    """
    if takes_kernels(x.dtype, x) and x.shape[-1] <= elementwise.MAX_WIDTH:
        total, normed = _add_norm(x, update)
        return checkpoint_name(total, RESIDUAL), checkpoint_name(normed, NORMED)
    total = checkpoint_name(x + update, RESIDUAL)
    return total, checkpoint_name(rms_norm(total), NORMED)


@jax.custom_vjp
def _add_norm(x, update):
    flat = lambda y: y.reshape(-1, y.shape[-1])
    return tuple(
        y.reshape(x.shape) for y in elementwise.add_norm(flat(x), flat(update), FLOAT32_EPSILON)
    )


def _backward(total, grads):
    flat = lambda y: y.reshape(-1, y.shape[-1])
    grad = elementwise.add_norm_gradient(*map(flat, (total, *grads)), FLOAT32_EPSILON).reshape(
        total.shape
    )
    return grad, grad


def _forward(x, update):
    total, normed = _add_norm(x, update)
    total = checkpoint_name(total, RESIDUAL)  # here too: it is what the gradient reads
    return (total, normed), total


_add_norm.defvjp(_forward, _backward)
