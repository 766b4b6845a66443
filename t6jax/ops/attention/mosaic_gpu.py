"""Attention's Mosaic GPU kernels for Hopper, and where they are faster than cuDNN's."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention import forward
from pallas_kernels.attention import gradient as gradient_kernel
from pallas_kernels.attention.cta_groups import utilization
from t6jax.ops.attention.segments import Segments
from t6jax.ops.implementation import not_hopper, target_gpu
from t6jax.ops.spread import is_spread

# Of the multiprocessors' time, the share that blocks of queries must fill for the forward kernel to
# be faster than cuDNN's.
LEAST_FILL = 2 / 3


def unsupported(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S G D"],
    value: Float[Array, "B S G E"],
    segment_ids: Int[Array, "B S"] | Segments | None,
    chunks: tuple[Int[Array, ""], Int[Array, ""]] | None,
) -> str | None:
    """Why the kernel of the forward pass does not take a call, or None."""
    return _common(query, segment_ids) or forward.unsupported(query, key, value, chunks)


def unsupported_gradient(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S G D"],
    value: Float[Array, "B S G E"],
    segment_ids: Int[Array, "B S"] | Segments | None,
    chunks: tuple[Int[Array, ""], Int[Array, ""]] | None,
) -> str | None:
    """Why the kernel of the gradient does not take a call, or None."""
    return _common(query, segment_ids) or gradient_kernel.unsupported(query, key, value, chunks)


def _common(query: Array, segment_ids: Array | Segments | None) -> str | None:
    if reason := not_hopper():
        return reason
    if segment_ids is not None:
        return "it takes no segment_ids"
    if is_spread(query):
        return "it takes arrays on a mesh inside of jax.shard_map alone"
    return None


def slower_than_cudnn(query: Float[Array, "B T H D"], chunks: tuple | None) -> str | None:
    """Why cuDNN's forward pass is faster, or None.

    With chunks it never is: cuDNN reads a mask.
    """
    if chunks is not None:
        return None
    batch, tokens, heads, _ = query.shape
    blocks = batch * heads * -(-tokens // forward.BLOCK)
    fill = utilization(blocks, target_gpu().multiprocessors)
    return None if fill >= LEAST_FILL else f"it would fill {fill:.0%} of the GPU's time"


def gradient_slower_than_cudnn(
    query: Float[Array, "B T H D"], key: Float[Array, "B S G D"], chunks: tuple | None
) -> str | None:
    """Why cuDNN's gradient is faster, or None."""
    if chunks is not None or gradient_kernel.pays(query, key, target_gpu().multiprocessors):
        return None
    return "its gradient would leave too many multiprocessors idle"


def attend_with_lse(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S G D"],
    value: Float[Array, "B S G E"],
    segment_ids: None,
    chunks: tuple[Int[Array, ""], Int[Array, ""]] | None,
    *,
    scale: float,
) -> tuple[Float[Array, "B T H E"], Float[Array, "B H T"]]:
    """Softmax(scale Q K^T) V per head (eq. 3.2), for scale > 0, and its log-sum-exps, float32."""
    out, lse = forward.attention_forward(
        query, key, value, _numbers(chunks), scale=scale, sms=target_gpu().multiprocessors
    )
    return out, lse


def gradient(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S G D"],
    value: Float[Array, "B S G E"],
    segment_ids: None,
    chunks: tuple[Int[Array, ""], Int[Array, ""]] | None,
    out: Float[Array, "B T H E"],
    lse: Float[Array, "B H T"],
    grad: Float[Array, "B T H E"],
    *,
    scale: float,
) -> tuple[Float[Array, "B T H D"], Float[Array, "B S G D"], Float[Array, "B S G E"]]:
    """The gradients of query, key and value from out's, and from what the forward pass gave."""
    d_query, d_key, d_value = gradient_kernel.attention_gradient(
        *(query, key, value, out, lse, grad, _numbers(chunks)),
        scale=scale,
        sms=target_gpu().multiprocessors,
    )
    return d_query, d_key, d_value


def _numbers(chunks: tuple | None) -> Int[Array, "2"] | None:
    return None if chunks is None else jnp.stack(chunks).astype(jnp.int32)
