"""Decoding against cached keys and values, each head's or shared by groups of heads: MHA, GQA, MQA,
MFA, absorbed MLA.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t6jax.ops.decode.masked_softmax import masked_softmax, visible


def decode_dense(
    query: Float[Array, "B N H D"],
    key: Float[Array, "B M G D"],
    value: Float[Array, "B M G E"],
    lengths: Int[Array, "B"],
    *,
    scale: float | None = None,
) -> Float[Array, "B N H E"]:
    """Attention of N new tokens over M cached ones, heads 0 .. H/G - 1 sharing group 0 and so on.

    lengths: valid tokens of each sequence, the N new ones included: new token n sees the first
        lengths - N + 1 + n; one that sees none gets zeros. A length is taken as M at most.
    scale: of the softmax, default 1/sqrt(D).

    Scores, softmax and sums are float32; the result has the query's dtype.
    """
    (batch, new, heads, dim), (room, groups) = query.shape, key.shape[1:3]
    factor: float = dim**-0.5 if scale is None else scale
    grouped = query.reshape(batch, new, groups, heads // groups, dim)
    with jax.default_matmul_precision("highest"):
        # half-precision products are exact in float32: nothing is gained by widening the cache
        # first
        logits = jnp.einsum("bngqd,bmgd->bngqm", grouped, key, preferred_element_type=jnp.float32)
        seen = visible(jnp.clip(lengths, 0, room), new, room)
        p, _ = masked_softmax(logits.reshape(batch, new, heads, room) * factor, seen)
        # tokens after the length may hold anything, NaN too, which a zero weight does not cancel
        value = jnp.where(jnp.any(seen, axis=1)[:, :, None, None], value, 0)
        p = p.reshape(batch, new, groups, heads // groups, room).astype(value.dtype)
        out = jnp.einsum("bngqm,bmge->bngqe", p, value, preferred_element_type=jnp.float32)
    return out.reshape(batch, new, heads, -1).astype(query.dtype)
