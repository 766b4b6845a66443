"""`t6jax.decode`: attention of new tokens over a TPA cache."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from pallas_kernels.decode.cache_layout import CacheLayout
from t6jax.arguments import floats, integers, number
from t6jax.errors import InputError
from t6jax.ops import implementation as implementations
from t6jax.ops.decode import mosaic_gpu, triton, xla
from t6jax.ops.tpa_cache import TPACache
from t6jax.ops.tpa_factors import FixedFactors, TPAQuery, checked_fixed

# fastest first
KERNELS = {"mosaic_gpu": mosaic_gpu, "triton": triton}


def decode(
    query: TPAQuery | Float[Array, "B N H D"],
    cache: TPACache,
    lengths: Int[Array, "B"] | None = None,
    *,
    fixed: FixedFactors | None = None,
    scale: float | None = None,
    implementation: str | None = None,
    return_lse: bool = False,
) -> Float[Array, "B N H E"] | tuple[Float[Array, "B N H E"], Float[Array, "B N H"]]:
    """Attends with N new tokens of each sequence over its cached factors (Algorithm 1).

    Takes any ranks R_Q, R_K, R_V.

    | implementation | what it takes                                                            |
    |----------------|--------------------------------------------------------------------------|
    | "mosaic_gpu"   | Hopper; bfloat16 or float16 caches, D and E of 32, 64 or 128, H <= 128   |
    | "triton"       | NVIDIA GPUs from Ampere on, with the package jax-triton; bfloat16 or     |
    |                | float16 caches, D and E powers of 2 from 16 to 256                       |
    | "xla"          | every call, in float32                                                   |

    With None, the first of them that takes the call runs where the program is lowered for CUDA, and
    "xla" elsewhere. Which one that is, and why not a faster one, is logged once for each kind of
    call, at level INFO of the logger "t6jax". The gradient is that of "xla", whatever runs.

    Args:
      query: TPAQuery(a [B, N, R_Q, H], b [B, N, R_Q, D]), or a dense array [B, N, H, D]
        (TPA-KVonly); RoPE already applied.
      cache: M tokens of each of B sequences, the new tokens' own entries already appended. Under
        jit it may be sharded over a mesh (TPACache.sharding): each device decodes its own sequences
        and heads, and nothing of the cache moves.
      lengths: int32 [B], valid tokens of each sequence, the N new ones included; default all M. New
        token n sees the first lengths - N + 1 + n; one that sees none gets zeros. May change from
        call to call without a recompile.
      fixed: the factors that are the same for all tokens, which the cache does not hold
        (appendices A.1 and I): FixedFactors(a_k=[R_K, H], a_v=[R_V, H]) or
        FixedFactors(b_k=[R_K, D], b_v=[R_V, E]).
      scale: of the softmax, default 1/sqrt(D). The 1/R factors of eq. 3.1 are always applied.
      implementation: one of the table's, or None.
      return_lse: also return the log-sum-exp of each token's and head's scaled scores.

    Returns:
      [B, N, H, E] in the query's dtype; with return_lse also float32 [B, N, H].

    Raises:
      InputError: shapes disagree, or a length exceeds the cache. Inside of jit a length cannot be
        looked at: there one below 0 is taken as 0, and one beyond the cache as M.
      NotImplementedError: the named implementation does not take the call.
    """
    fixed = checked_fixed(fixed)
    lengths = _check(query, cache, lengths, fixed)
    features = query.b if isinstance(query, TPAQuery) else query
    traced: Any = scale  # within jit it may be an array, for the definition in plain JAX
    if not isinstance(scale, Tracer):
        traced = features.shape[-1] ** -0.5 if scale is None else number("scale", scale)
    factor: float = traced
    refusals = {
        name: functools.partial(kernel.unsupported, cache, factor)
        for name, kernel in KERNELS.items()
    }

    def kind() -> str:
        c, factored = cache.layout, isinstance(query, TPAQuery)
        ranks = f"R_Q={features.shape[2]}, " if factored else "dense queries, "
        return (
            f"{features.dtype} on {cache.rows.dtype}, {ranks}R_K={c.rank_k}, R_V={c.rank_v}, "
            f"H={c.heads}, D={c.dim_k}, E={c.dim_v}"
        )

    results: Any
    takers = implementations.choose("decode", refusals, implementation, kind)
    if takers:
        results = _decode(query, cache, lengths, fixed, factor, takers, implementation)
    else:
        results = xla.decode(query, cache, lengths, fixed, scale=factor)
    out, lse = results
    out = out.astype(features.dtype)
    return (out, lse) if return_lse else out


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _decode(
    query: TPAQuery | Array,
    cache: TPACache,
    lengths: Int[Array, "B"],
    fixed: FixedFactors,
    scale: float,
    takers: tuple[str, ...],
    named: str | None,
) -> tuple[Float[Array, "B N H E"], Float[Array, "B N H"]]:
    """By the first of the kernels that takes the call, where it is lowered for CUDA."""

    def definition(query, *arguments):
        out, lse = xla.decode(query, *arguments, scale=scale)
        return out.astype(jax.tree.leaves(query)[0].dtype), lse

    def kernel(*arguments):
        for name in takers:
            try:
                return KERNELS[name].decode(*arguments, scale=scale)
            except NotImplementedError:  # found out only when its tiles are laid out
                if named is not None:
                    raise
        return definition(*arguments)

    return implementations.by_platform(
        kernel, definition, query, cache, lengths, fixed, implementation=named
    )


def _forward(query, cache, lengths, fixed, *settings):
    return _decode(query, cache, lengths, fixed, *settings), (query, cache, lengths, fixed)


def _backward(scale, takers, named, arguments, grads):
    definition = functools.partial(xla.decode, scale=scale)
    out, lse = grads
    return jax.vjp(definition, *arguments)[1]((out.astype(jnp.float32), lse))


_decode.defvjp(_forward, _backward)


def _check(
    query: TPAQuery | Array, cache: TPACache, lengths: Array | None, fixed: FixedFactors
) -> Int[Array, "B"]:
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
    layout = cache.layout
    heads, dim = layout.heads, layout.dim_k
    _check_fixed(fixed, layout)
    if isinstance(query, TPAQuery):
        for name, array, last in (("query.a", query.a, heads), ("query.b", query.b, dim)):
            if floats(name, array).ndim != 4 or (array.shape[0], array.shape[3]) != (batch, last):
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
        if (
            floats("query", query).ndim != 4
            or query.shape[0] != batch
            or query.shape[2:] != (heads, dim)
        ):
            raise InputError(
                f"query has shape {query.shape}, but the cache asks for [{batch}, N, {heads}, "
                f"{dim}]"
            )
        new_tokens = query.shape[1]
    if new_tokens < 1:
        raise InputError("query holds no new token: its second axis must be at least 1")
    if lengths is None:
        return jnp.full((batch,), max_length, jnp.int32)
    lengths = integers("lengths", lengths, batch)
    if not isinstance(lengths, Tracer):
        values = np.asarray(lengths)
        if values.size and not 0 <= values.min() <= values.max() <= max_length:
            raise InputError(
                f"lengths must lie between 0 and the cache's {max_length} tokens, got "
                f"{values.tolist()}"
            )
    return lengths


def _check_fixed(fixed: FixedFactors, layout: CacheLayout) -> None:
    """Raises InputError unless the fixed factors are those that a cache does not hold."""
    want = {
        "a_k": None if layout.stores_a else (layout.rank_k, layout.heads),
        "b_k": None if layout.stores_b else (layout.rank_k, layout.dim_k),
        "a_v": None if layout.stores_a else (layout.rank_v, layout.heads),
        "b_v": None if layout.stores_b else (layout.rank_v, layout.dim_v),
    }
    for name, shape in want.items():
        given = getattr(fixed, name)
        if given is None and shape is not None and name == "b_v" and want["b_k"] == shape:
            continue  # shared with b_k
        if shape is None and given is not None:
            raise InputError(f"fixed.{name} is given, but the cache holds {name}: leave it out")
        if shape is not None and (given is None or given.shape != shape):
            got = "nothing" if given is None else f"shape {given.shape}"
            raise InputError(
                f"fixed.{name} must have shape {shape}, since the cache does not hold {name}; got "
                f"{got}"
            )
