"""FlashTPA decoding (Algorithm 1, for any ranks) in plain JAX: the definition that every kernel is
tested against.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from pallas_kernels.decode import cache_layout
from t6jax.ops.decode.masked_softmax import masked_softmax, visible
from t6jax.ops.tpa_cache import TPACache
from t6jax.ops.tpa_factors import FixedFactors, TPAQuery, key_value_factors


def decode(
    query: TPAQuery | Float[Array, "B N H D"],
    cache: TPACache,
    lengths: Int[Array, "B"],
    fixed: FixedFactors,
    *,
    scale: float,
) -> tuple[Float[Array, "B N H E"], Float[Array, "B N H"]]:
    """Attention of N new tokens over the factor cache, and its log-sum-exp, both float32.

    A token that sees nothing gets zeros and a log-sum-exp of -inf; a length is taken as M at most.
    """
    fixed = _onto_mesh_of(cache, fixed)
    if cache.layout.head_shards == 1:
        return _decode(query, cache, fixed, lengths, scale)
    # each shard by itself, so that shards which lie on several devices stay there
    arguments, axes = cache.by_head_shard(query, fixed)
    each: Any = jax.vmap(functools.partial(_decode, scale=scale), in_axes=(*axes, None), out_axes=2)
    out, lse = each(*arguments, lengths)
    return (
        cache_layout.merge_heads(cache.layout, out, 2),
        cache_layout.merge_heads(cache.layout, lse, 2),
    )


def _onto_mesh_of(cache: TPACache, fixed: FixedFactors) -> FixedFactors:
    """The fixed factors on every device of the cache's mesh, where its axes are Explicit."""
    mesh = jax.typeof(cache.rows).sharding.mesh
    if not mesh.explicit_axes:
        return fixed
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.sharding.reshard(x, everywhere), fixed)


def _decode(
    query: TPAQuery | Array,
    cache: TPACache,
    fixed: FixedFactors,
    lengths: Int[Array, "B"],
    scale: float,
) -> tuple[Float[Array, "B N H E"], Float[Array, "B N H"]]:
    room = cache.max_length
    lengths = jnp.clip(lengths, 0, room)
    factors: Any = key_value_factors(cache.stored(), fixed, cache.rope, jnp.arange(room)[None])
    # what is the same for all sequences or tokens, for each of them
    mesh_axis = jax.typeof(cache.rows).sharding.spec[0]
    whole = (
        jnp.broadcast_to(x.astype(jnp.float32), (cache.batch, room, *x.shape[2:])) for x in factors
    )
    a_k, b_k, a_v, b_v = (cache_layout.shard_axis(x, 0, mesh_axis) for x in whole)
    # float32 products even where the device would round to TF32
    with jax.default_matmul_precision("highest"):
        if isinstance(query, TPAQuery):
            a_q, b_q = (x.astype(jnp.float32) for x in query)
            s = jnp.einsum("bnqd,bmkd->bnmqk", b_q, b_k)  # step 1
            s = jnp.einsum("bnqh,bnmqk->bnhmk", a_q, s) / a_q.shape[2]  # step 2
        else:
            s = jnp.einsum("bnhd,bmkd->bnhmk", query.astype(jnp.float32), b_k)
        logits = jnp.einsum("bnhmk,bmkh->bnhm", s, a_k) * (scale / a_k.shape[2])  # step 3

        seen = visible(lengths, logits.shape[1], room)
        p, lse = masked_softmax(logits, seen)  # step 4

        # tokens after the length may hold anything, NaN too, which no weight of zero silences
        within = jnp.any(seen, axis=1)[:, :, None, None]
        a_v, b_v = (jnp.where(within, x, 0) for x in (a_v, b_v))
        weighted = jnp.einsum("bnhm,bmvh->bnmvh", p, a_v)  # step 5
        out = jnp.einsum("bnmvh,bmve->bnhe", weighted, b_v) / a_v.shape[2]  # step 6
    return out, lse
