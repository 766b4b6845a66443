"""The gate of SwiGLU."""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pallas_kernels.elementwise.swiglu import swiglu_gradient, unsupported
from t6jax.ops.implementation import by_platform, choose
from t6jax.ops.names import GATE, UP
from t6jax.ops.precision import at_least_float32


def swiglu(
    gate: Float[Array, "*batch width"],
    up: Float[Array, "*batch width"],
    *,
    implementation: str | None = None,
) -> Float[Array, "*batch width"]:
    """silu(gate) * up (section 3.5), computed in float32.

    Its gradient keeps gate and up alone. Differentiation by itself would keep the sigmoid too, one
    more array of the widest kind in a block.

    Args:
      gate: [..., width].
      up: [..., width].
      implementation: of the gradient: "triton" (NVIDIA GPUs, half precision), "xla" or None, the
        faster one that takes the call.

    Returns:
      [..., width] in up's dtype.

    Raises:
      NotImplementedError: the named implementation does not take the call.
    """
    refusals = {"triton": lambda: unsupported(gate.dtype)}
    takers = choose("swiglu", refusals, implementation, lambda: f"{gate.dtype}")
    gate, up = checkpoint_name(gate, GATE), checkpoint_name(up, UP)
    return _swiglu(gate, up, bool(takers), implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _swiglu(gate: Array, up: Array, kernel: bool, named: str | None) -> Array:
    wide = at_least_float32(gate)
    return (wide * jax.nn.sigmoid(wide) * at_least_float32(up)).astype(up.dtype)


def _forward(gate: Array, up: Array, kernel: bool, named: str | None) -> tuple[Array, tuple]:
    return _swiglu(gate, up, kernel, named), (gate, up)


def _backward(kernel: bool, named: str | None, residuals: tuple, grad: Array) -> tuple:
    gate, up = residuals
    if not kernel:
        return _gradient_xla(gate, up, grad)
    return by_platform(_gradient_triton, _gradient_xla, gate, up, grad, implementation=named)


def _gradient_triton(gate: Array, up: Array, grad: Array) -> tuple[Array, Array]:
    rows = lambda x: x.reshape(-1, x.shape[-1])
    gate_grad, up_grad = swiglu_gradient(rows(gate), rows(up), rows(grad))
    return gate_grad.reshape(gate.shape), up_grad.reshape(gate.shape)


def _gradient_xla(gate: Array, up: Array, grad: Array) -> tuple[Array, Array]:
    wide_gate, wide_up, wide_grad = (at_least_float32(x) for x in (gate, up, grad))
    s = jax.nn.sigmoid(wide_gate)
    gate_grad = wide_grad * wide_up * s * (1 + wide_gate * (1 - s))
    return gate_grad.astype(gate.dtype), (wide_grad * wide_gate * s).astype(up.dtype)


_swiglu.defvjp(_forward, _backward)
