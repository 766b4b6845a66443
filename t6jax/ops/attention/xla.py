"""Causal attention in plain JAX: the definition that every kernel is tested against."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from t6jax.ops import names
from t6jax.ops.attention.segments import Segments, pieces
from t6jax.ops.precision import accumulator
from t6jax.ops.spread import is_spread

# Bytes of scores beyond which they are computed some heads at a time, and again for the gradient.
KEPT_SCORES = 2**28


def attend(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S G D"],
    value: Float[Array, "B S G E"],
    segment_ids: Int[Array, "B S"] | Segments | None,
    chunks: tuple[Int[Array, ""], Int[Array, ""]] | None,
    *,
    scale: float,
) -> tuple[Float[Array, "B T H E"], Float[Array, "B H T"]]:
    """Softmax(scale Q K^T) V per head (eq. 3.2) and the log-sum-exps of its scores.

    Products, softmax and sums are float32 or wider; the weights are rounded to the value's dtype.
    """
    results = [
        _masked(query[:, p.queries], key[:, : p.keys], value[:, : p.keys], p.mask, scale, p.causal)
        for p in pieces(query, key, segment_ids, chunks)
    ]
    if len(results) == 1:
        return results[0]
    out, lse = zip(*results, strict=True)
    return jnp.concatenate(out, axis=1), jnp.concatenate(lse, axis=2)


def _masked(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S G D"],
    value: Float[Array, "B S G E"],
    mask: Bool[Array, "#B 1 T S"] | None,
    scale: float,
    causal: bool,
) -> tuple[Float[Array, "B T H E"], Float[Array, "B H T"]]:
    (batch, tokens, heads, dim), (_, keys, groups, value_dim) = query.shape, value.shape
    in_group = heads // groups
    grouped = query.reshape(batch, tokens, groups, in_group, dim)
    group_bytes = tokens * keys * in_group * accumulator(query.dtype).itemsize
    if batch * groups * group_bytes <= KEPT_SCORES or is_spread(query):
        out, lse = _scored(grouped, key, value, mask, scale, causal, named=True)
        return out.reshape(batch, tokens, heads, value_dim), lse.reshape(batch, heads, tokens)

    @jax.checkpoint
    def one_group(arrays: tuple[Array, ...]) -> tuple[Array, Array]:
        row, *qkv = arrays
        seen = None if mask is None else mask[row if len(mask) > 1 else 0][None]
        q, k, v = (x[None, :, None] for x in qkv)
        # without a name: no rematerialisation policy may keep the scores of all groups
        out, lse = _scored(q, k, v, seen, scale, causal, named=False)
        return out[0, :, 0], lse[0, 0]

    def by_group(x: Array) -> Array:
        return jnp.moveaxis(x, 2, 1).reshape(batch * groups, x.shape[1], *x.shape[3:])

    rows = jnp.repeat(jnp.arange(batch), groups)
    arrays = (rows, *map(by_group, (grouped, key, value)))
    out, lse = jax.lax.map(one_group, arrays, batch_size=max(1, KEPT_SCORES // group_bytes))
    out = jnp.moveaxis(out.reshape(batch, groups, *out.shape[1:]), 1, 2)
    return out.reshape(batch, tokens, heads, value_dim), lse.reshape(batch, heads, tokens)


def _scored(
    grouped: Float[Array, "B T G h D"],
    key: Float[Array, "B S G D"],
    value: Float[Array, "B S G E"],
    mask: Bool[Array, "#B 1 T S"] | None,
    scale: float,
    causal: bool,
    *,
    named: bool,
) -> tuple[Float[Array, "B T G h E"], Float[Array, "B G h T"]]:
    wide = accumulator(grouped.dtype)
    logits = jnp.einsum("btghd,bsgd->bghts", grouped, key, preferred_element_type=wide) * scale
    if named:
        logits = checkpoint_name(logits, names.SCORES)
    seen = jnp.tril(jnp.ones((grouped.shape[1], key.shape[1]), bool)) if causal else True
    if mask is not None:
        seen = seen & mask[:, :, None]
    logits = jnp.where(seen, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    out = jnp.einsum("bghts,bsge->btghe", weights, value, preferred_element_type=wide)
    return out.astype(value.dtype), jax.nn.logsumexp(logits, axis=-1)
