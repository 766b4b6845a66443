"""Attention over whole sequences, for training and prefill."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t6jax.ops.precision import accumulator


class Segments(NamedTuple):
    """Which tokens see each other where several continuations share a context: its tokens have own = context."""

    own: Int[Array, "B T"]
    context: Int[Array, "B T"]


def seen_segments(segment_ids: Int[Array, "B T"] | Segments) -> Bool[Array, "B 1 T T"]:
    """Which tokens (the last axis) each token sees: those of its own segment and those of its context."""
    if not isinstance(segment_ids, Segments):
        segment_ids = Segments(segment_ids, segment_ids)
    own, context = segment_ids
    key = own[:, None, None, :]
    return (own[:, None, :, None] == key) | (context[:, None, :, None] == key)


def causal_attention(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B T G D"],
    value: Float[Array, "B T G E"],
    *,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
    scale: float | None = None,
) -> Float[Array, "B T H E"]:
    """Softmax(scale Q K^T) V per head (eq. 3.2), each token seeing itself and what precedes it.

    Heads 0 .. H/G - 1 share key and value 0, and so on.
    segment_ids: tokens see only tokens of their own segment; with Segments, of their context's too.
    scale: default 1/sqrt(D).

    On an NVIDIA GPU, half-precision inputs run in cuDNN's flash attention, everything else in XLA with float32 softmax.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    mask = None if segment_ids is None else seen_segments(segment_ids)
    half_precision = query.dtype in (jnp.bfloat16, jnp.float16)
    value_dim = value.shape[-1]
    head_dim = max(query.shape[-1], value_dim)
    # cuDNN wants an even length where a mask is given, and head widths that are multiples of 8 up to 128
    odd = mask is not None and query.shape[1] % 2
    if jax.default_backend() != "gpu" or not half_precision or odd or head_dim % 8 or head_dim > 128:
        return _plain(query, key, value, mask, scale)
    # and one width for all: zeros add nothing to the scores, and are cut from the output
    query, key, value = (jnp.pad(x, ((0, 0),) * 3 + ((0, head_dim - x.shape[-1]),)) for x in (query, key, value))
    out = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=True, scale=scale, implementation="cudnn")
    return out[..., :value_dim]


def _plain(query: Array, key: Array, value: Array, mask: Bool[Array, "B 1 T T"] | None, scale: float) -> Array:
    (batch, tokens, heads, dim), groups = query.shape, key.shape[2]
    grouped = query.reshape(batch, tokens, groups, heads // groups, dim)
    wide = accumulator(query.dtype)
    logits = jnp.einsum("btgqd,bsgd->bgqts", grouped, key, preferred_element_type=wide) * scale
    seen = jnp.tril(jnp.ones((tokens, tokens), bool))
    if mask is not None:
        seen = seen & mask[:, :, None]
    p = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1).astype(value.dtype)
    out = jnp.einsum("bgqts,bsge->btgqe", p, value, preferred_element_type=wide)
    return out.reshape(batch, tokens, heads, -1).astype(value.dtype)
