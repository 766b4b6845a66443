"""Attention over whole sequences, for training and prefill."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# jax.nn.dot_product_attention rounds the log-sum-exps that it returns to bfloat16; this is what it
# calls
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention import forward, gradient
from pallas_kernels.attention.teams import utilization
from pallas_kernels.device import multiprocessors
from t6jax.ops import names
from t6jax.ops.on_gpu import on_hopper
from t6jax.ops.precision import accumulator
from t6jax.parallel import sequence


class Segments(NamedTuple):
    """Which tokens see each other where several continuations share a context: its tokens have own
    = context.
    """

    own: Int[Array, "B T"]
    context: Int[Array, "B T"]


def seen_segments(
    segment_ids: Int[Array, "B S"] | Segments, queries: Int[Array, "B T"] | Segments | None = None
) -> Bool[Array, "B 1 T S"]:
    """Which tokens (the last axis) each token sees: those of its own segment and those of its
    context.

    queries: of the tokens that look, default all.
    """
    queries = segment_ids if queries is None else queries
    own, context = queries if isinstance(queries, Segments) else (queries, queries)
    key = (segment_ids.own if isinstance(segment_ids, Segments) else segment_ids)[:, None, None, :]
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

    On an NVIDIA GPU, half-precision inputs run in cuDNN's flash attention, everything else in XLA
    with float32 softmax, which keeps no scores for the gradient where they are many. What models
    train on has kernels of ours: without segments, D = E = 64, G = H, T a multiple of 128, heads
    enough to fill the GPU, a Hopper; bfloat16 forward. Where devices split the sequence, queries
    are of this device's tokens (t6jax.parallel.sequence.local_tokens), the rest of all; the kernels
    then take any multiple of 512 of them.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = (
        checkpoint_name(x, name)
        for x, name in ((query, names.QUERY), (key, names.KEY), (value, names.VALUE))
    )
    if sequence.sequence_shards() > 1:
        return _of_own_tokens(query, key, value, segment_ids, scale)
    mask = None if segment_ids is None else seen_segments(segment_ids)
    return _attention(query, key, value, mask, scale, causal=True)


def _of_own_tokens(
    query: Array, key: Array, value: Array, segment_ids: Array | Segments | None, scale: float
) -> Float[Array, "B T H E"]:
    """Each chunk over what it may look back at: by our kernels, which count that for themselves, or
    under masks.

    Under masks the earlier chunk looks at the first half of the sequence and the later one at all
    of it: shapes must be the same on all devices. Over s devices (2s chunks) those are s + 2s
    products of chunks, of which 2s are seen.
    """
    if segment_ids is None and scale > 0 and _kernels_take_chunks(query, key, value):
        chunks = jnp.stack(sequence.local_chunks()).astype(jnp.int32)
        return _with_kernels(query, key, value, chunks, scale, Kernels(forward=True, gradient=True))
    length = query.shape[1] // 2
    out = []
    for part, number, keys in zip(
        jnp.split(query, 2, axis=1),
        sequence.local_chunks(),
        (key.shape[1] // 2, key.shape[1]),
        strict=True,
    ):
        place = number * length + jnp.arange(length)
        mask = (place[:, None] >= jnp.arange(keys))[None, None]
        if segment_ids is not None:
            own = jax.tree.map(
                lambda x, n=number: jax.lax.dynamic_slice_in_dim(x, n * length, length, axis=1),
                segment_ids,
            )
            mask = mask & seen_segments(jax.tree.map(lambda x, n=keys: x[:, :n], segment_ids), own)
        out.append(_attention(part, key[:, :keys], value[:, :keys], mask, scale, causal=False))
    return jnp.concatenate(out, axis=1)


def _attention(
    query: Array, key: Array, value: Array, mask: Array | None, scale: float, *, causal: bool
) -> Array:
    half_precision = query.dtype in (jnp.bfloat16, jnp.float16)
    value_dim = value.shape[-1]
    head_dim = max(query.shape[-1], value_dim)
    # cuDNN wants even lengths where a mask is given, and head widths that are multiples of 8 up to
    # 128
    odd = mask is not None and (query.shape[1] % 2 or key.shape[1] % 2)
    if (
        jax.default_backend() != "gpu"
        or not half_precision
        or odd
        or head_dim % 8
        or head_dim > 128
    ):
        return _plain(query, key, value, mask, scale, causal)
    if scale <= 0:  # which cuDNN makes NaN of
        query, scale = query * (-1 if scale else 0), -scale or 1.0
    if mask is None and causal and any(kernels := _kernels_that_pay(query, key, value)):
        return _with_kernels(query, key, value, None, scale, kernels)
    # and one width for all: zeros add nothing to the scores, and are cut from the output
    query, key, value = (
        jnp.pad(x, ((0, 0),) * 3 + ((0, head_dim - x.shape[-1]),)) for x in (query, key, value)
    )
    out = jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=causal, scale=scale, implementation="cudnn"
    )
    return out[..., :value_dim]


class Kernels(NamedTuple):
    """Which of our kernels attention runs through; cuDNN's in place of the others."""

    forward: bool
    gradient: bool


LEAST_FILL = 2 / 3  # of the multiprocessors' time, with blocks of queries for the forward kernel


def _spread(x: Array) -> bool:
    """Whether an array may lie in pieces on a mesh, outside of jax.shard_map: cuDNN's calls can
    then be split, the kernels and loops over sequences and heads cannot."""
    mesh = jax.typeof(x).sharding.mesh
    return bool(mesh.explicit_axes or (mesh.auto_axes and mesh.size > 1))


def _kernels_that_pay(query: Array, key: Array, value: Array) -> Kernels:
    if _spread(query) or not on_hopper():
        return Kernels(False, False)
    (batch, tokens, heads, _), sms = query.shape, multiprocessors()
    blocks = batch * heads * -(-tokens // forward.BLOCK)
    return Kernels(
        not forward.unsupported(query, key, value) and utilization(blocks, sms) >= LEAST_FILL,
        not gradient.unsupported(query, key, value) and gradient.pays(query, key, sms),
    )


def _kernels_take_chunks(query: Array, key: Array, value: Array) -> bool:
    """Whether our kernels take what a device has of a sequence. Beside masks, which cuDNN reads,
    they always pay.
    """
    if _spread(query) or not on_hopper():
        return False
    return not forward.unsupported(query, key, value, sequence.local_chunks())


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _with_kernels(
    query: Array,
    key: Array,
    value: Array,
    chunks: Int[Array, "2"] | None,
    scale: float,
    kernels: Kernels,
) -> Float[Array, "B T H D"]:
    if kernels.forward:
        return forward.attention_forward(
            query, key, value, chunks, scale=scale, sms=multiprocessors()
        )[0]
    return _cudnn(query, key, value, scale)


def _cudnn(query: Array, key: Array, value: Array, scale: float) -> Float[Array, "B T H D"]:
    return jax.nn.dot_product_attention(
        query, key, value, is_causal=True, scale=scale, implementation="cudnn"
    )


def _cudnn_with_lse(
    query: Array, key: Array, value: Array, scale: float
) -> tuple[Float[Array, "B T H D"], Float[Array, "B H T"]]:
    return cudnn.dot_product_attention(
        query, key, value, scale=scale, mask_type=cudnn.MaskType.CAUSAL, return_residual=True
    )


def keep_attention(primitive: Any, *_: Any, **settings: Any) -> bool:
    """A rematerialisation policy: what attention's kernels give is kept, being small beside what it
    costs; cuDNN's too.
    """
    return (
        primitive.name.startswith("dot_product_attention_fwd")
        or settings.get("name") == names.ATTENTION
    )


def _forward(
    query: Array,
    key: Array,
    value: Array,
    chunks: Int[Array, "2"] | None,
    scale: float,
    kernels: Kernels,
) -> tuple[Array, Any]:
    if not kernels.gradient:
        return jax.vjp(lambda *x: _cudnn(*x, scale), query, key, value)
    if kernels.forward:
        results = forward.attention_forward(
            query, key, value, chunks, scale=scale, sms=multiprocessors()
        )
    else:
        results = _cudnn_with_lse(query, key, value, scale)
    out, lse = (checkpoint_name(x, names.ATTENTION) for x in results)
    return out, (query, key, value, out, lse, chunks)


def _backward(
    scale: float, kernels: Kernels, residuals: Any, grad: Array
) -> tuple[Array | None, ...]:
    if not kernels.gradient:
        return *residuals(grad), None
    *residuals, chunks = residuals
    return *gradient.attention_gradient(
        *residuals, grad, chunks, scale=scale, sms=multiprocessors()
    ), None


_with_kernels.defvjp(_forward, _backward)


KEPT_SCORES = (
    2**28
)  # bytes of scores beyond which they are computed so many at a time, and again for the gradient


def _plain(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S G D"],
    value: Float[Array, "B S G E"],
    mask: Bool[Array, "#B 1 T S"] | None,
    scale: float,
    causal: bool,
) -> Float[Array, "B T H E"]:
    (batch, tokens, heads, dim), (_, keys, groups, value_dim) = query.shape, value.shape
    grouped = query.reshape(batch, tokens, groups, heads // groups, dim)
    size = (
        tokens * keys * heads // groups * accumulator(query.dtype).itemsize
    )  # of a group's scores
    if batch * groups * size <= KEPT_SCORES or _spread(query):
        out = _scored(grouped, key, value, mask, scale, causal)
        return checkpoint_name(out.reshape(batch, tokens, heads, value_dim), names.ATTENTION)

    @jax.checkpoint
    def of_a_group(arrays: tuple[Array, ...]) -> Float[Array, "T h E"]:
        row, *arrays = arrays
        seen = None if mask is None else mask[row if len(mask) > 1 else 0][None]
        return _scored(*(x[None, :, None] for x in arrays), seen, scale, causal)[0, :, 0]

    by_group = lambda x: jnp.moveaxis(x, 2, 1).reshape(batch * groups, x.shape[1], *x.shape[3:])
    rows = jnp.repeat(jnp.arange(batch), groups)
    arrays = (rows, *map(by_group, (grouped, key, value)))
    out = jax.lax.map(of_a_group, arrays, batch_size=max(1, KEPT_SCORES // size))
    return jnp.moveaxis(out.reshape(batch, groups, *out.shape[1:]), 1, 2).reshape(
        batch, tokens, heads, value_dim
    )


def _scored(
    grouped: Float[Array, "B T G h D"],
    key: Float[Array, "B S G D"],
    value: Float[Array, "B S G E"],
    mask: Bool[Array, "#B 1 T S"] | None,
    scale: float,
    causal: bool,
) -> Float[Array, "B T G h E"]:
    wide = accumulator(grouped.dtype)
    logits = jnp.einsum("btgqd,bsgd->bgqts", grouped, key, preferred_element_type=wide) * scale
    logits = checkpoint_name(logits, names.SCORES)
    seen = jnp.tril(jnp.ones((grouped.shape[1], key.shape[1]), bool)) if causal else True
    if mask is not None:
        seen = seen & mask[:, :, None]
    p = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1).astype(value.dtype)
    return jnp.einsum("bgqts,bsge->btgqe", p, value, preferred_element_type=wide).astype(
        value.dtype
    )
