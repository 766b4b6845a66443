"""Attention over whole sequences, for training and prefill."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def causal_attention(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B T H D"],
    value: Float[Array, "B T H D"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B T H D"]:
    """Softmax(scale Q K^T) V per head (eq. 3.2), each token seeing itself and what precedes it.

    segment_ids: tokens see only tokens of their own segment.
    scale: default 1/sqrt(D).

    On an NVIDIA GPU, half-precision inputs run in cuDNN's flash attention, everything else in XLA with float32 softmax.
    """
    mask = None if segment_ids is None else (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    head_dim = query.shape[-1]
    half_precision = query.dtype in (jnp.bfloat16, jnp.float16)
    # cuDNN wants an even length where a mask is given, and head widths that are multiples of 8 up to 128
    cudnn = jax.default_backend() == "gpu" and half_precision and head_dim % 8 == 0 and head_dim <= 128
    if mask is not None and query.shape[1] % 2:
        cudnn = False
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=True, scale=scale, implementation="cudnn" if cudnn else "xla"
    )
