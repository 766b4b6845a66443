"""Cross-entropy and its gradient from the logits (Triton), which are read once from memory and a
second time from the L2 cache. It needs jax-triton.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from pallas_kernels.batching import row_wise
from pallas_kernels.triton_launch import launch, unavailable

BLOCK = 4096  # logits that a program works on at a time
NUM_WARPS = 8


def unsupported(logits_dtype: DTypeLike) -> str | None:
    """Why the kernel does not take logits of this dtype, or None."""
    if logits_dtype != jnp.float32:
        return f"the logits must be float32, not {jnp.dtype(logits_dtype)}"
    return unavailable()


def cross_entropy_gradient(
    logits: Float[Array, "N V"], targets: Int[Array, "N"], dtype: DTypeLike
) -> tuple[Float[Array, "N"], Float[Array, "N V"]]:
    """-log softmax(logits)[target] in nats, and its gradient: softmax(logits) less 1 at the target.

    Args:
        logits: float32.
        targets: 0 .. V-1.
        dtype: The gradient's.

    Returns:
        The losses, float32, and the gradients.

    Raises:
        NotImplementedError: The kernel does not take the logits; see `unsupported`.
    """
    if reason := unsupported(logits.dtype):
        raise NotImplementedError(f"cross_entropy_gradient: {reason}")
    run = row_wise(lambda logits, targets: _launch(logits, targets, dtype))
    return run(logits, targets.astype(jnp.int32))


def _launch(logits: Array, targets: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    from pallas_kernels.elementwise import cross_entropy_kernels

    rows, width = logits.shape
    losses, grad = launch(
        logits,
        targets,
        kernel=cross_entropy_kernels.cross_entropy_gradient,
        out_shape=[
            jax.ShapeDtypeStruct((rows,), jnp.float32),
            jax.ShapeDtypeStruct((rows, width), dtype),
        ],
        grid=(rows,),
        num_warps=NUM_WARPS,
        WIDTH=width,
        BLOCK=BLOCK,
    )
    return losses, grad
