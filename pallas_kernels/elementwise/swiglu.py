"""The gradient of SwiGLU's gate in one pass over memory (Triton): it reads three arrays and writes
two. It needs jax-triton.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from pallas_kernels.batching import row_wise
from pallas_kernels.triton_launch import launch, unavailable

BLOCK = 2048  # numbers of a program
NUM_WARPS = 4


def unsupported(dtype: DTypeLike) -> str | None:
    """Why the kernel does not take arrays of this dtype, or None."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"the arrays must be bfloat16 or float16, not {jnp.dtype(dtype)}"
    return unavailable()


def swiglu_gradient(
    gate: Float[Array, "N W"], up: Float[Array, "N W"], grad: Float[Array, "N W"]
) -> tuple[Float[Array, "N W"], Float[Array, "N W"]]:
    """The gradients of gate and up from that of silu(gate) * up.

    Args:
        gate: bfloat16 or float16.
        up: Of gate's dtype.
        grad: The gradient of silu(gate) * up.

    Returns:
        Both gradients, computed in float32, in gate's dtype.

    Raises:
        NotImplementedError: The kernel does not take the arrays; see `unsupported`.
    """
    if reason := unsupported(gate.dtype):
        raise NotImplementedError(f"swiglu_gradient: {reason}")
    return row_wise(_launch)(gate, up, grad)


def _launch(gate: Array, up: Array, grad: Array) -> tuple[Array, Array]:
    from pallas_kernels.elementwise import swiglu_kernels

    same = jax.ShapeDtypeStruct(gate.shape, gate.dtype)
    gate_grad, up_grad = launch(
        gate,
        up,
        grad,
        kernel=swiglu_kernels.swiglu_gradient,
        out_shape=[same, same],
        grid=(-(-gate.size // BLOCK),),
        num_warps=NUM_WARPS,
        SIZE=gate.size,
        BLOCK=BLOCK,
    )
    return gate_grad, up_grad
