"""A cache and its fixed factors, as the decode kernels of pallas_kernels take them."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.decode import cache_layout, flash_tpa
from pallas_kernels.decode.cache_layout import Rotation
from t6jax.ops.tpa_cache import TPACache
from t6jax.ops.tpa_factors import FixedFactors, TPAQuery


def unsupported(kernel: str, cache: TPACache, scale: float) -> str | None:
    """Why a kernel does not take a cache, or None."""
    try:
        flash_tpa.KERNELS[kernel].check(cache.layout, cache.rows.dtype, _rotation(cache), scale)
    except NotImplementedError as reason:
        return str(reason)
    return None


def decode(
    kernel: str,
    query: TPAQuery | Float[Array, "B N H D"],
    cache: TPACache,
    lengths: Int[Array, "B"],
    fixed: FixedFactors,
    *,
    scale: float,
) -> tuple[Float[Array, "B N H E"], Float[Array, "B N H"]]:
    """Attention by a kernel, in the query's dtype, and its float32 log-sum-exp."""
    options: dict[str, Any] = {}
    if fixed.a_k is not None:
        options["a"] = (fixed.a_k, fixed.a_v)
    if fixed.b_k is not None:
        options["b"] = _table(cache, fixed)
    results: Any = flash_tpa.decode(
        query,
        cache.rows,
        lengths,
        cache.layout,
        kernel=kernel,
        rotation=_rotation(cache),
        scale=scale,
        return_lse=True,
        **options,
    )
    return results


def _rotation(cache: TPACache) -> Rotation | None:
    """The rotation of keys that the cache's rows hold before RoPE."""
    if cache.rope is None or not cache.layout.stores_b:
        return None
    frequencies = cache.rope.frequencies(cache.layout.dim_k)
    return Rotation(tuple(map(float, frequencies)), cache.rope.table_dtype)


def _table(cache: TPACache, fixed: FixedFactors) -> Float[Array, "M W_B"]:
    """The fixed B factors at each position, RoPE applied to the keys'."""
    positions = jnp.arange(cache.max_length)
    assert fixed.b_k is not None
    b_k = fixed.b_k[None]
    b_v = b_k if fixed.b_v is None else fixed.b_v[None]
    if cache.rope is not None:
        b_k = cache.rope(b_k[None], positions[None])[0]
    b_k, b_v = (jnp.broadcast_to(x, (len(positions), *x.shape[1:])) for x in (b_k, b_v))
    return cache_layout.pack_b(cache.layout, b_k, b_v).astype(cache.rows.dtype)
