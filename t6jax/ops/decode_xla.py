"""FlashTPA decoding (Algorithm 1, for any ranks) in plain JAX: the definition that every kernel is held against."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t6jax.ops.tpa_cache import TPACache, TPAQuery


def visible(lengths: Int[Array, "B"], new_tokens: int, max_length: int) -> Bool[Array, "B N M"]:
    """Which cached tokens each new token sees: new token n the first lengths - N + 1 + n."""
    limit = lengths[:, None] - new_tokens + 1 + jnp.arange(new_tokens)
    return jnp.arange(max_length) < limit[:, :, None]


def decode(
    query: TPAQuery | Float[Array, "B N H D"], cache: TPACache, lengths: Int[Array, "B"], scale: float
) -> tuple[Float[Array, "B N H E"], Float[Array, "B N H"]]:
    """Attention of N new tokens over the factor cache, and its log-sum-exp, both float32.

    A token that sees nothing gets zeros and a log-sum-exp of -inf; a sequence whose length exceeds the cache gets NaN.
    """
    with jax.default_matmul_precision("highest"):  # float32 products even where the device would round to TF32
        a_k, b_k, a_v, b_v = (x.astype(jnp.float32) for x in cache.factors())
        if isinstance(query, TPAQuery):
            a_q, b_q = (x.astype(jnp.float32) for x in query)
            s = jnp.einsum("bnqd,bmkd->bnmqk", b_q, b_k)  # step 1
            s = jnp.einsum("bnqh,bnmqk->bnhmk", a_q, s) / a_q.shape[2]  # step 2
        else:
            s = jnp.einsum("bnhd,bmkd->bnhmk", query.astype(jnp.float32), b_k)
        logits = jnp.einsum("bnhmk,bmkh->bnhm", s, a_k) * (scale / a_k.shape[2])  # step 3

        seen = visible(lengths, logits.shape[1], cache.max_length)[:, :, None, :]
        logits = jnp.where(seen, logits, -jnp.inf)
        highest = jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf)
        p = jnp.where(seen, jnp.exp(logits - jnp.where(jnp.isfinite(highest), highest, 0)), 0)  # step 4
        total = jnp.sum(p, axis=-1)
        p = p / jnp.where(total > 0, total, 1)[..., None]

        # tokens behind the length may hold anything, NaN too: a zero weight alone would not silence them
        within = jnp.any(seen, axis=(1, 2))[:, :, None, None]
        a_v, b_v = jnp.where(within, a_v, 0), jnp.where(within, b_v, 0)
        weighted = jnp.einsum("bnhm,bmvh->bnmvh", p, a_v)  # step 5
        out = jnp.einsum("bnmvh,bmve->bnhe", weighted, b_v) / a_v.shape[2]  # step 6
    lse = jnp.log(total) + highest[..., 0]
    beyond = (lengths > cache.max_length)[:, None, None]
    return jnp.where(beyond[..., None], jnp.nan, out), jnp.where(beyond, jnp.nan, lse)
