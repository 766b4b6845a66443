"""Attention over whole sequences, for training and prefill."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def causal_attention(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B T G D"],
    value: Float[Array, "B T G E"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B T H E"]:
    """Softmax(scale Q K^T) V per head (eq. 3.2), each token seeing itself and what precedes it.

    Heads 0 .. H/G - 1 share key and value 0, and so on.
    segment_ids: tokens see only tokens of their own segment.
    scale: default 1/sqrt(D).

    On an NVIDIA GPU, half-precision inputs run in cuDNN's flash attention, everything else in XLA with float32 softmax.
    """
    mask = None if segment_ids is None else (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    value_dim = value.shape[-1]
    # one width for all, by zeros that add nothing to the scores and are cut from the output
    head_dim = max(query.shape[-1], value_dim)
    query, key, value = (jnp.pad(x, ((0, 0),) * 3 + ((0, head_dim - x.shape[-1]),)) for x in (query, key, value))
    half_precision = query.dtype in (jnp.bfloat16, jnp.float16)
    # cuDNN wants an even length where a mask is given, and head widths that are multiples of 8 up to 128
    cudnn = jax.default_backend() == "gpu" and half_precision and head_dim % 8 == 0 and head_dim <= 128
    if mask is not None and query.shape[1] % 2:
        cudnn = False
    out = jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=True, scale=scale, implementation="cudnn" if cudnn else "xla"
    )
    return out[..., :value_dim]
