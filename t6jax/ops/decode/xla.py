"""FlashTPA decoding (Algorithm 1, for any ranks) in plain JAX: the definition that every kernel is
held against.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.decode import cache_layout
from t6jax.ops.decode.masked_softmax import masked_softmax, visible
from t6jax.ops.tpa_cache import TPACache, TPAQuery


def decode(
    query: TPAQuery | Float[Array, "B N H D"],
    cache: TPACache,
    lengths: Int[Array, "B"],
    scale: float,
) -> tuple[Float[Array, "B N H E"], Float[Array, "B N H"]]:
    """Attention of N new tokens over the factor cache, and its log-sum-exp, both float32.

    A token that sees nothing gets zeros and a log-sum-exp of -inf; a length is taken as M at most.
    """
    if cache.head_shards == 1:
        return _decode(query, cache, lengths, scale)
    # each share by itself, so that shares which lie on several devices stay there
    arguments, axes = cache.shares(query)
    each = jax.vmap(functools.partial(_decode, scale=scale), in_axes=(*axes, None), out_axes=2)
    return tuple(
        cache_layout.merge_heads(cache.for_kernels()[1], x, 2) for x in each(*arguments, lengths)
    )


def _decode(query, cache, lengths, scale):
    lengths = jnp.clip(lengths, 0, cache.max_length)
    with jax.default_matmul_precision(
        "highest"
    ):  # float32 products even where the device would round to TF32
        a_k, b_k, a_v, b_v = (x.astype(jnp.float32) for x in cache.factors())
        # a factor lacks the axes that it does not depend on: "bm", "m" or none before its rank
        k_a, k_b, v_a, v_b = ("bm"[4 - x.ndim :] for x in (a_k, b_k, a_v, b_v))
        if isinstance(query, TPAQuery):
            a_q, b_q = (x.astype(jnp.float32) for x in query)
            s = jnp.einsum(f"bnqd,{k_b}kd->bn{k_b[-1:]}qk", b_q, b_k)  # step 1
            s = jnp.einsum(f"bnqh,bn{k_b[-1:]}qk->bnh{k_b[-1:]}k", a_q, s) / a_q.shape[2]  # step 2
        else:
            s = jnp.einsum(f"bnhd,{k_b}kd->bnh{k_b[-1:]}k", query.astype(jnp.float32), b_k)
        logits = jnp.einsum(f"bnh{k_b[-1:]}k,{k_a}kh->bnhm", s, a_k) * (
            scale / a_k.shape[-2]
        )  # step 3

        seen = visible(lengths, logits.shape[1], cache.max_length)
        p, lse = masked_softmax(logits, seen)  # step 4

        # tokens behind the length may hold anything, NaN too: a zero weight alone would not silence
        # them
        within = jnp.any(seen, axis=1)[:, :, None, None]
        a_v, b_v = (jnp.where(within, x, 0) if x.ndim == 4 else x for x in (a_v, b_v))
        if v_a:
            weighted = jnp.einsum(f"bnhm,{v_a}vh->bnmvh", p, a_v)  # step 5
            out = jnp.einsum(f"bnmvh,{v_b}ve->bnhe", weighted, b_v)  # step 6
        else:  # one A for all tokens: weight the B factors first
            out = jnp.einsum(f"bnhm,{v_b}ve->bnhve", p, b_v)
            out = jnp.einsum("bnhve,vh->bnhe", out, a_v)
        out = out / a_v.shape[-2]
    return out, lse
