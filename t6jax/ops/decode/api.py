"""`t6jax.decode`: attention of new tokens over a TPA cache, by the fastest implementation that
supports the call.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from t6jax.errors import InputError
from t6jax.ops.decode import xla
from t6jax.ops.on_gpu import on_hopper
from t6jax.ops.tpa_cache import TPACache, TPAQuery


def _triton(
    query: TPAQuery | Array, cache: TPACache, lengths: Array, scale: float
) -> tuple[Array, Array]:
    device = jax.devices()[0]
    if device.platform != "gpu":
        raise NotImplementedError(
            f"implementation='triton' needs an NVIDIA GPU; this is {device.device_kind}"
        )
    return _kernel("triton", query, cache, lengths, scale)


def _mosaic_gpu(
    query: TPAQuery | Array, cache: TPACache, lengths: Array, scale: float
) -> tuple[Array, Array]:
    if not on_hopper():
        kind = jax.devices()[0].device_kind
        raise NotImplementedError(
            f"implementation='mosaic_gpu' needs a Hopper GPU (H100, H200); this is {kind}"
        )
    return _kernel("mosaic_gpu", query, cache, lengths, scale)


def _kernel(
    name: str, query: TPAQuery | Array, cache: TPACache, lengths: Array, scale: float
) -> tuple[Array, Array]:
    from pallas_kernels.decode import flash_tpa

    rows, layout, options = cache.for_kernels()
    return flash_tpa.decode(
        query, rows, lengths, layout, kernel=name, scale=scale, return_lse=True, **options
    )


# by preference; each raises NotImplementedError for the calls that it does not take
IMPLEMENTATIONS: dict[str, Callable] = {
    "mosaic_gpu": _mosaic_gpu,
    "triton": _triton,
    "xla": xla.decode,
}


def decode(
    query: TPAQuery | Float[Array, "B N H D"],
    cache: TPACache,
    lengths: Int[Array, "B"] | None = None,
    *,
    scale: float | None = None,
    implementation: str | None = None,
    return_lse: bool = False,
) -> Float[Array, "B N H E"] | tuple[Float[Array, "B N H E"], Float[Array, "B N H"]]:
    """Attends with N new tokens of each sequence over its cached factors (Algorithm 1, any ranks
    R_Q, R_K, R_V).

    query: TPAQuery(a [B, N, R_Q, H], b [B, N, R_Q, D]), or a dense array [B, N, H, D] (TPA-KVonly);
        RoPE already applied.
    cache: a TPACache of M tokens for each of B sequences, the new tokens' own entries already
        appended; its factors may be non-contextual or shared (TPACache.from_factors). Under jit it
        may be spread over a mesh (TPACache.sharding): each device decodes its own sequences and
        heads, and nothing of the cache moves.
    lengths: int32 [B], valid tokens of each sequence, the N new ones included; default all M. New
        token n sees the first lengths - N + 1 + n; one that sees none gets zeros. May change from
        call to call without a recompile.
    scale: of the softmax, default 1/sqrt(D). The 1/R factors of eq. 3.1 are always applied.
    implementation: "mosaic_gpu" (Hopper), "triton" (any NVIDIA GPU from Ampere on) or "xla";
        default the fastest that supports this call on this device.
    return_lse: also return the float32 log-sum-exp of each token's and head's scaled scores, [B, N,
        H].

    Returns [B, N, H, E] in the query's dtype.

    Raises InputError (a ValueError) where shapes disagree or a length exceeds the cache,
    NotImplementedError where a named implementation cannot serve the call. Inside jit a length
    cannot be looked at: there one below 0 is taken as 0, one beyond the cache as M.
    """
    lengths = _check(query, cache, lengths)
    features, dtype = (
        (query.b, query.b.dtype) if isinstance(query, TPAQuery) else (query, query.dtype)
    )
    scale = features.shape[-1] ** -0.5 if scale is None else scale
    out, lse = _run(implementation, query, cache, lengths, scale)
    out = out.astype(dtype)
    return (out, lse) if return_lse else out


def _run(name: str | None, *arguments: Any) -> tuple[Array, Array]:
    """The implementation of that name, or the first that takes the call."""
    if name is not None:
        if name not in IMPLEMENTATIONS:
            raise InputError(
                f"implementation={name!r} is unknown; take one of "
                f"{', '.join(map(repr, IMPLEMENTATIONS))} or None"
            )
        return IMPLEMENTATIONS[name](*arguments)
    *kernels, last = IMPLEMENTATIONS.values()
    for implementation in kernels:
        try:
            return implementation(*arguments)
        except NotImplementedError:
            continue
    return last(*arguments)


def _check(query: TPAQuery | Array, cache: TPACache, lengths: Array | None) -> Array:
    if not isinstance(cache, TPACache):
        raise InputError(
            "cache must be a TPACache (TPACache.from_factors makes one), got "
            f"{type(cache).__name__}"
        )
    if not isinstance(query, TPAQuery | jax.Array | np.ndarray):
        raise InputError(
            f"query must be a TPAQuery(a, b) or a dense array, got {type(query).__name__}"
        )
    batch, max_length = cache.batch, cache.max_length
    heads, dim = cache.num_heads, cache.key_dim
    if isinstance(query, TPAQuery):
        for name, array, last in (("query.a", query.a, heads), ("query.b", query.b, dim)):
            if array.ndim != 4 or (array.shape[0], array.shape[3]) != (batch, last):
                raise InputError(
                    f"{name} has shape {array.shape}, but the cache asks for [{batch}, N, R_Q, "
                    f"{last}]"
                )
        if query.a.shape[:3] != query.b.shape[:3]:
            raise InputError(
                f"query.a {query.a.shape} and query.b {query.b.shape} disagree on batch, new "
                "tokens or rank"
            )
        new_tokens = query.a.shape[1]
    else:
        if query.ndim != 4 or query.shape[0] != batch or query.shape[2:] != (heads, dim):
            raise InputError(
                f"query has shape {query.shape}, but the cache asks for [{batch}, N, {heads}, "
                f"{dim}]"
            )
        new_tokens = query.shape[1]
    if new_tokens < 1:
        raise InputError("query holds no new token: its second axis must be at least 1")
    if lengths is None:
        return jnp.full((batch,), max_length, jnp.int32)
    lengths = jnp.asarray(lengths)
    if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise InputError(
            f"lengths must be integers of shape [{batch}], got {lengths.dtype}{list(lengths.shape)}"
        )
    if not isinstance(lengths, jax.core.Tracer):
        values = np.asarray(lengths)
        if values.size and not 0 <= values.min() <= values.max() <= max_length:
            raise InputError(
                f"lengths must lie between 0 and the cache's {max_length} tokens, got "
                f"{values.tolist()}"
            )
    return lengths.astype(jnp.int32)
