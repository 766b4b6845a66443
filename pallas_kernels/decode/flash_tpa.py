"""FlashTPA decoding (the paper's Algorithms 1 and 3) over a packed TPA cache, by one of the kernels
of this package.

This module has what the kernels share: the signature, errors, A factors that are the same for all
tokens, and arguments that are sharded over several devices. A kernel sees the sequences and heads
of one device.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.decode import mosaic_gpu, triton
from pallas_kernels.decode.cache_layout import CacheLayout, Rotation, merge_heads, split_heads
from pallas_kernels.decode.partition import on_each_device

KERNELS = {"mosaic_gpu": mosaic_gpu, "triton": triton}


def decode(
    query: tuple[Float[Array, "B N R_Q H"], Float[Array, "B N R_Q D"]] | Float[Array, "B N H D"],
    rows: Float[Array, "B M *row"],
    lengths: Int[Array, "B"],
    layout: CacheLayout,
    *,
    kernel: str = "mosaic_gpu",
    a: tuple[Float[Array, "R_K H"], Float[Array, "R_V H"]] | None = None,
    b: Float[Array, "table W_B"] | None = None,
    rotation: Rotation | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    config: Any = None,
) -> Float[Array, "B N H E"] | tuple[Float[Array, "B N H E"], Float[Array, "B N H"]]:
    """Attention of N new tokens over a packed TPA cache.

    Args:
        query: (a_q, b_q), or a dense query.
        rows: [B, M, *layout.row_shape], bfloat16 or float16, as `cache_layout.pack` makes them.
        lengths: Valid tokens, the N new ones included: new token n sees the first
            lengths - N + 1 + n. Less than 0 counts as 0, more than M as M.
        layout: Of the rows.
        kernel: "mosaic_gpu" (Hopper) or "triton" (Ampere, Ada, Hopper; needs jax-triton).
        a: (a_k, a_v) where the rows hold no A factors.
        b: M or more rows, by position, as `cache_layout.pack_b` makes them, where the rows hold no
            B factors.
        rotation: Where the rows hold b_k before RoPE: keys are rotated, by their position in the
            cache, as they are read.
        scale: Of the logits; default 1/sqrt(D).
        return_lse: Whether the log-sum-exps are returned too.
        config: Tile sizes; default: the kernel's own choice.

    Returns:
        The outputs in the query's dtype and, with return_lse, the float32 log-sum-exps.

    Raises:
        NotImplementedError: The kernel does not take the call; the message says why.

    Under jit, sequences that are split over a mesh, and the head shards of a layout with
    head_shards, stay where they are: each device decodes its own. Under vmap the mapped axis
    becomes part of B.
    """
    factors = isinstance(query, tuple | list)
    arrays = tuple(query) if isinstance(query, tuple | list) else (query,)
    dtype = arrays[0].dtype
    scale = layout.dim_k**-0.5 if scale is None else scale
    _check(rows, layout, a, b, rotation)
    run = KERNELS[kernel]
    run.check(layout, rows.dtype, rotation, scale)

    # head shards: a_q [B, N, R_Q, S, H / S] or q [B, N, S, H / S, D], and a [R, S, H / S]
    arrays = (split_heads(layout, arrays[0], 3 if factors else 2), *arrays[1:])
    fixed_a = () if a is None else tuple(split_heads(layout, x) for x in a)
    fixed_b = () if b is None else (b,)
    options = dict(rotation=rotation, scale=scale, dtype=dtype) | (
        {} if config is None else {"config": config}
    )
    attend = functools.partial(run.attend, **options)
    on_device = functools.partial(_on_device, attend=attend, layout=layout.shard)
    out, lse = on_each_device(on_device, arrays, rows, lengths.astype(jnp.int32), fixed_a, fixed_b)
    out, lse = merge_heads(layout, out, 2), merge_heads(layout, lse, 2)
    return (out, lse) if return_lse else out


def _on_device(query, rows, lengths, a, b, *, attend, layout):
    """What one device does: out [B, N, S, H, E] and lse [B, N, S, H] of its B sequences and its S
    head shards.
    """
    axis = 3 if len(query) == 2 else 2
    first, *others = query
    (B, N), (S, H) = first.shape[:2], first.shape[axis : axis + 2]
    if rows.ndim == 4:  # a head shard of a sequence is to the kernel a sequence of its own
        first = jnp.moveaxis(first, axis, 1)
        query = first.reshape(B * S, *first.shape[2:]), *[jnp.repeat(x, S, axis=0) for x in others]
        results = attend(
            query, rows.reshape(*rows.shape[:2], -1), jnp.repeat(lengths, S), a, b, layout
        )
        return [jnp.moveaxis(x.reshape(B, S, *x.shape[1:]), 1, 2) for x in results]
    # all heads read the same rows
    query = first.reshape(*first.shape[:axis], S * H, *first.shape[axis + 2 :]), *others
    a = tuple(x.reshape(-1, S * H) for x in a)
    results = attend(query, rows, lengths, a, b, dataclasses.replace(layout, heads=S * H))
    return [x.reshape(B, N, S, H, *x.shape[3:]) for x in results]


def _check(rows, layout, a, b, rotation):
    if rows.shape[2:] != layout.row_shape:
        raise ValueError(
            f"rows have shape {list(rows.shape)}, but those of {layout} end in "
            f"{list(layout.row_shape)} numbers"
        )
    if (a is None) != layout.stores_a or (b is None) != layout.stores_b:
        raise ValueError(
            f"a and b are given exactly where the rows do not hold those factors, and {layout} was "
            "given"
        )
    if b is not None and (
        b.shape[-1] != layout.b_width or b.shape[0] < rows.shape[1] or b.dtype != rows.dtype
    ):
        raise ValueError(
            f"b must be {rows.dtype} [{rows.shape[1]} or more, {layout.b_width}], not {b.dtype} "
            f"{list(b.shape)}"
        )
    if rotation is not None and (
        not layout.stores_b or 2 * len(rotation.frequencies) != layout.dim_k
    ):
        raise ValueError(
            f"rotation needs B factors in the rows and {layout.dim_k // 2} frequencies (D / 2), "
            f"but got {rotation}"
        )
