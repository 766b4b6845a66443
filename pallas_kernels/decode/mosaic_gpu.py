"""FlashTPA decoding (the paper's Algorithms 1 and 3) for Hopper GPUs, in Pallas Mosaic GPU.

    q[h]      = 1/R_Q sum_r a_q[r, h] b_q[r]
    s[m, h]   = scale/R_K sum_r a_k[m, r, h] (b_k[m, r] . q[h])
    o[h]      = 1/R_V sum_m softmax_m(s[m, h]) sum_r a_v[m, r, h] b_v[m, r]

Two kernels. The first walks the cache: its blocks divide all tokens of all sequences evenly among
themselves, whatever the lengths are, and leave one unnormalised result for each sequence that a
block touched. The second merges a sequence's results by their log-sum-exps; it is launched while
the first still runs and waits on the device.

The first kernel is in mosaic_gpu_partials.py, the second in mosaic_gpu_combine.py, and tile sizes
in mosaic_gpu_config.py. `pallas_kernels.decode.flash_tpa.decode` calls `attend`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.decode.cache_layout import CacheLayout, Rotation
from pallas_kernels.decode.mosaic_gpu_combine import combine
from pallas_kernels.decode.mosaic_gpu_config import Config, default_config
from pallas_kernels.decode.mosaic_gpu_partials import partials
from pallas_kernels.device import multiprocessors


def check(layout: CacheLayout, dtype, rotation: Rotation | None, scale: float) -> None:
    """Raises NotImplementedError, saying why, for what `attend` does not take."""
    no = lambda why: NotImplementedError(f"flash_tpa_mosaic: {why}")
    if dtype not in (jnp.bfloat16, jnp.float16):
        raise no(f"the cache must be bfloat16 or float16, not {dtype}")
    if not scale > 0:
        raise no(f"the scale must be a positive number, not {scale}")
    if (heads := layout.shard.heads if layout.stores_a else layout.heads) > 128:
        raise no(f"at most 128 heads, not {heads}")
    if layout.dim_k not in (32, 64, 128) or layout.dim_v not in (32, 64, 128):
        raise no(f"D and E must be 32, 64 or 128, not {layout.dim_k} and {layout.dim_v}")
    if not layout.stores_a and layout.rank_v * layout.dim_v > 256:
        raise no(
            "without A factors in the cache R_V E is at most 256, not "
            f"{layout.rank_v * layout.dim_v}"
        )


def attend(
    query: tuple[jax.Array, ...],
    rows: jax.Array,
    lengths: jax.Array,
    a: tuple[jax.Array, ...],
    b: tuple[jax.Array, ...],
    layout: CacheLayout,
    *,
    rotation: Rotation | None,
    scale: float,
    dtype,
    config: Config | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(out [B, N, H, E] of that dtype, float32 log-sum-exp [B, N, H]) on one device.

    query: (a_q [B, N, R_Q, H], b_q [B, N, R_Q, D]) or (q [B, N, H, D],).
    rows: [B / S, M, S W], those of S sequences side by side.
    a: (a_k [R_K, H], a_v [R_V, H]) where the rows hold no A factors. b: (table [M or more, W_B],)
        where they hold no B factors.
    """
    N, wanted = query[0].shape[1], dtype
    # The keys' A goes into the query, the values' comes after: what is left is one key and one
    # value for all heads.
    if a:
        a_k, a_v = [x.astype(jnp.float32) for x in a]
        q = jnp.einsum("bnhd,rh->bnhrd", _dense(query), a_k)
        query, dtype, scale = (
            (q.reshape(*q.shape[:3], -1).astype(rows.dtype),),
            jnp.float32,
            scale / layout.rank_k,
        )
        widths = dict(dim_k=layout.rank_k * layout.dim_k, dim_v=layout.rank_v * layout.dim_v)
        ranks, layout = (
            (layout.rank_v, layout.dim_v),
            dataclasses.replace(layout, rank_k=1, rank_v=1, **widths),
        )
    elif any(x.dtype != rows.dtype for x in query):
        query = (_dense(query),)
    config = config or default_config(layout, N, multiprocessors(), rotation is not None)
    results = partials(query, rows, b[0] if b else None, lengths, layout, rotation, scale, config)
    shape = len(lengths), N, layout.heads, layout.dim_v
    out, lse = combine(results, lengths, shape, rows.shape[1], layout, config, dtype)
    if a:
        out = out.reshape(*out.shape[:3], *ranks)
        out = jnp.einsum(
            "bnhre,rh->bnhe", out, a_v / ranks[0], precision=lax.Precision.HIGHEST
        ).astype(wanted)
    return out, lse


def _dense(query: tuple[jax.Array, ...]) -> jax.Array:
    if len(query) == 1:
        return query[0].astype(jnp.float32)
    a_q, b_q = [x.astype(jnp.float32) for x in query]
    return jnp.einsum("bnrh,bnrd->bnhd", a_q, b_q, precision=lax.Precision.HIGHEST) / a_q.shape[2]
