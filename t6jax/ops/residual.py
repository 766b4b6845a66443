"""The residual stream of a block: an update is added, and the sum is normed for the next layer
(section 3.5).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pallas_kernels.elementwise import add_norm as elementwise
from t6jax.ops.implementation import by_platform, choose
from t6jax.ops.names import NORMED, RESIDUAL
from t6jax.ops.precision import at_least_float32

# RMSNorm's epsilon in the published code: the machine epsilon of the float32 that it is computed in
FLOAT32_EPSILON = float(jnp.finfo(jnp.float32).eps)


def rms_norm(
    x: Float[Array, "*batch D"],
    epsilon: float = FLOAT32_EPSILON,
    weight: Float[Array, "D"] | None = None,
) -> Float[Array, "*batch D"]:
    """x / sqrt(mean(x^2) + epsilon) along the last axis, times the weight.

    Args:
      x: [..., D].
      epsilon: added to the mean square.
      weight: [D]; None: 1.

    Returns:
      [..., D] in x's dtype; the norm is computed in float32 or wider.
    """
    wide = at_least_float32(x)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    normed = normed.astype(x.dtype)
    return normed if weight is None else normed * weight.astype(x.dtype)


def add_norm(
    x: Float[Array, "*batch D"],
    update: Float[Array, "*batch D"],
    *,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch D"]]:
    """x + update, and its RMSNorm.

    Args:
      x: [..., D].
      update: [..., D].
      implementation: "triton" (NVIDIA GPUs, half precision, one kernel for the sum and its norm,
        one for the gradient), "xla" or None, the faster one that takes the call.

    Returns:
      The sum and its norm, [..., D] in x's dtype.

    Raises:
      NotImplementedError: the named implementation does not take the call.
    """
    refuse = lambda: elementwise.unsupported(x.shape[-1], x.dtype)
    kind = lambda: f"{x.dtype}, D={x.shape[-1]}"
    if choose("add_norm", {"triton": refuse}, implementation, kind):
        results: Any = _add_norm(x, update, implementation)
        total, normed = results
    else:
        total, normed = _add_norm_xla(x, update)
    return checkpoint_name(total, RESIDUAL), checkpoint_name(normed, NORMED)


def _add_norm_xla(x: Array, update: Array) -> tuple[Array, Array]:
    total = checkpoint_name(x + update, RESIDUAL)
    return total, rms_norm(total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _add_norm(x: Array, update: Array, named: str | None) -> tuple[Array, Array]:
    return by_platform(_add_norm_triton, _add_norm_xla, x, update, implementation=named)


def _forward(x: Array, update: Array, named: str | None) -> tuple[tuple[Array, Array], Array]:
    results: Any = _add_norm(x, update, named)
    total, normed = results
    total = checkpoint_name(total, RESIDUAL)  # here too: it is what the gradient reads
    return (total, normed), total


def _backward(named: str | None, total: Array, grads: tuple[Array, Array]) -> tuple[Array, Array]:
    grad = by_platform(_gradient_triton, _gradient_xla, total, *grads, implementation=named)
    return grad, grad


_add_norm.defvjp(_forward, _backward)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _add_norm_triton(x: Array, update: Array) -> tuple[Array, Array]:
    total, normed = elementwise.add_norm(_rows(x), _rows(update), FLOAT32_EPSILON)
    return total.reshape(x.shape), normed.reshape(x.shape)


def _gradient_triton(total: Array, total_grad: Array, normed_grad: Array) -> Array:
    return elementwise.add_norm_gradient(
        _rows(total), _rows(total_grad), _rows(normed_grad), FLOAT32_EPSILON
    ).reshape(total.shape)


def _gradient_xla(total: Array, total_grad: Array, normed_grad: Array) -> Array:
    return total_grad + jax.vjp(rms_norm, total)[1](normed_grad)[0]
