"""cuDNN's flash attention.

jax.nn.dot_product_attention, which calls the same kernels, rounds the log-sum-exps to the output's
dtype, which is too coarse for a gradient that is computed from them, and offers no gradient by
itself. Hence this file, alone, reaches into jax._src.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as fused
from jaxtyping import Array, Float, Int

from t6jax.ops.attention.segments import Piece, Segments, pieces

WIDEST_HEAD = 128
SEED, NO_DROPOUT = 42, 0.0


def unsupported(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S G D"],
    value: Float[Array, "B S G E"],
    segment_ids: Int[Array, "B S"] | Segments | None,
    chunks: tuple[Int[Array, ""], Int[Array, ""]] | None,
) -> str | None:
    """Why cuDNN does not take a call, or None."""
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"queries must be bfloat16 or float16, not {query.dtype}"
    width = max(query.shape[-1], value.shape[-1])
    if width % 8 or width > WIDEST_HEAD:
        return f"the wider of D and E must be a multiple of 8 up to {WIDEST_HEAD}; it is {width}"
    lengths = (query.shape[1], key.shape[1])
    if lengths == (1, 1):
        return "it has no gradient for a sequence of one token"
    if chunks is not None:
        lengths = tuple(n // 2 for n in lengths)
    if (segment_ids is not None or chunks is not None) and any(n % 2 for n in lengths):
        return f"under a mask the numbers of tokens must be even, not {lengths[0]} and {lengths[1]}"
    return _not_installed()


def _not_installed() -> str | None:
    """Why JAX cannot trace a call of cuDNN on this machine, or None: it asks for the version."""
    try:
        fused.check_cudnn_version()
    except RuntimeError as error:
        return f"it is not installed: {error}"
    return None


def attend(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S G D"],
    value: Float[Array, "B S G E"],
    segment_ids: Int[Array, "B S"] | Segments | None,
    chunks: tuple[Int[Array, ""], Int[Array, ""]] | None,
    *,
    scale: float,
) -> Float[Array, "B T H E"]:
    """Softmax(scale Q K^T) V per head (eq. 3.2), for scale > 0."""
    wide = _one_width(query, key, value)
    out = [
        jax.nn.dot_product_attention(
            *_of(p, *wide), mask=p.mask, is_causal=p.causal, scale=scale, implementation="cudnn"
        )
        for p in pieces(query, key, segment_ids, chunks)
    ]
    return _joined(out, axis=1)[..., : value.shape[-1]]


def attend_with_lse(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S G D"],
    value: Float[Array, "B S G E"],
    segment_ids: Int[Array, "B S"] | Segments | None,
    chunks: tuple[Int[Array, ""], Int[Array, ""]] | None,
    *,
    scale: float,
) -> tuple[Float[Array, "B T H E"], Float[Array, "B H T"]]:
    """As `attend`, with the float32 log-sum-exps of the scores."""
    wide = _one_width(query, key, value)
    results = [
        fused.dot_product_attention(
            *_of(p, *wide),
            mask=p.mask,
            scale=scale,
            mask_type=_mask_type(p),
            return_residual=True,
        )
        for p in pieces(query, key, segment_ids, chunks)
    ]
    out, lse = zip(*results, strict=True)
    return _joined(out, axis=1)[..., : value.shape[-1]], _joined(lse, axis=2)


def gradient(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S G D"],
    value: Float[Array, "B S G E"],
    segment_ids: Int[Array, "B S"] | Segments | None,
    chunks: tuple[Int[Array, ""], Int[Array, ""]] | None,
    out: Float[Array, "B T H E"],
    lse: Float[Array, "B H T"],
    grad: Float[Array, "B T H E"],
    *,
    scale: float,
) -> tuple[Float[Array, "B T H D"], Float[Array, "B S G D"], Float[Array, "B S G E"]]:
    """The gradients of query, key and value from out's, and from what `attend_with_lse` gave."""
    q, k, v, o, do = _one_width(query, key, value, out, grad)
    query_grads: list[Array] = []
    pair_grads: list[Array] = []  # of key and value, summed over the pieces
    for p in pieces(query, key, segment_ids, chunks):
        d_query, *d_pair = _gradient(p, q, k, v, o, do, lse, scale)
        query_grads.append(d_query)
        rest = [(0, 0), (0, key.shape[1] - p.keys), (0, 0), (0, 0)]
        d_pair = [jnp.pad(x, rest) if p.keys < key.shape[1] else x for x in d_pair]
        pair_grads = (
            [x + y for x, y in zip(pair_grads, d_pair, strict=True)] if pair_grads else d_pair
        )
    d_key, d_value = pair_grads
    return (
        _joined(query_grads, axis=1)[..., : query.shape[-1]],
        d_key[..., : key.shape[-1]],
        d_value[..., : value.shape[-1]],
    )


def _gradient(
    p: Piece, query: Array, key: Array, value: Array, out: Array, grad: Array, lse: Array, scale
) -> tuple[Array, ...]:
    query, key, value = _of(p, query, key, value)
    bias = None if p.mask is None else fused.combine_bias_and_mask(None, p.mask, query.dtype)
    absent = jnp.zeros(0, query.dtype)
    residuals = (
        *(query, key, value, absent if bias is None else bias, *[absent] * 6),
        *(lse[:, :, p.queries], out[:, p.queries]),
    )
    # the mask is no function of what is differentiated: no gradient of the bias
    variadic = bias is not None, False
    layout = fused.AttentionLayout.BTNH.value
    settings = scale, SEED, NO_DROPOUT, variadic, _mask_type(p), layout, None
    version, return_residual = fused.check_cudnn_version(), False
    return fused._dot_product_attention_bwd_rule(
        *settings, version, return_residual, residuals, grad[:, p.queries]
    )[:3]


def _mask_type(p: Piece) -> fused.MaskType:
    return fused.MaskType.CAUSAL if p.causal else fused.MaskType.NO_MASK


def _of(p: Piece, query: Array, key: Array, value: Array) -> tuple[Array, Array, Array]:
    return query[:, p.queries], key[:, : p.keys], value[:, : p.keys]


def _one_width(*arrays: Array) -> list[Array]:
    """The arrays, all as wide as the widest: zeros add nothing to the scores."""
    width = max(x.shape[-1] for x in arrays)
    return [
        jnp.pad(x, ((0, 0),) * 3 + ((0, width - x.shape[-1]),)) if x.shape[-1] < width else x
        for x in arrays
    ]


def _joined(arrays: Sequence[Array], axis: int) -> Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=axis)
