"""FlashTPA decoding (the paper's Algorithm 3) in Triton, for the NVIDIA GPUs and the shapes that
flash_tpa_mosaic does not take.

The same maths and cache as there, in two kernels. A program of the first takes one sequence, one of
`splits` equal parts of its tokens, and a block of heads of one new token; a program of the second
merges the parts of one head.

`pallas_kernels.flash_tpa.decode` calls `attend`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pallas_kernels.decode.cache_layout import CacheLayout, Rotation
from pallas_kernels.device import multiprocessors
from pallas_kernels.triton_launch import launch, power_of_2, unavailable

LOG2E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Config:
    """Tile and pipeline sizes."""

    tokens: int  # a tile
    heads: int  # of a program, at most
    num_warps: int
    num_stages: int
    programs: int  # on a multiprocessor, of those that the work is split into


def default_config(layout: CacheLayout) -> Config:
    """What measured best on an H200: a warp for every 16 heads, and as many stages as its registers
    allow.
    """
    heads = min(32, max(16, power_of_2(layout.heads)))
    small = max(layout.dim_k, layout.dim_v) <= 64
    return Config(
        64 if small else 32,
        heads,
        heads // 16,
        3 if small and layout.rank_k + layout.rank_v <= 2 else 2,
        4,
    )


def constants(
    layout: CacheLayout,
    batch: int,
    capacity: int,
    new_tokens: int,
    rank_q: int,
    scale: float,
    multiprocessors: int,
    config: Config,
    *,
    shares: int = 1,
    rotation: Rotation | None = None,
) -> dict:
    """The kernel's compile-time constants. None of them depends on the lengths. rank_q: 0 for a
    dense query.
    """
    heads = min(config.heads, max(16, power_of_2(layout.heads)))
    programs = batch * new_tokens * -(-layout.heads // heads)
    return dict(
        M=capacity,
        W=layout.width,
        W_B=layout.b_width,
        N=new_tokens,
        H=layout.heads,
        D=layout.dim_k,
        E=layout.dim_v,
        R_Q=rank_q,
        PADDED_R_Q=max(16, power_of_2(rank_q)) if rank_q else 0,
        R_K=layout.rank_k,
        R_V=layout.rank_v,
        PADDED_H=layout.padded_heads,
        B_K=layout.b_k,
        B_V=layout.b_v,
        A_K=layout.a_k,
        A_V=layout.a_v,
        SHARES=shares,
        SCALE=scale / layout.rank_k * LOG2E,
        TABLE=not layout.stores_b,
        CONSTANT_A=not layout.stores_a,
        ANGLE_DTYPE=_triton_dtype(rotation.dtype) if rotation else None,
        HALF=len(rotation.frequencies) if rotation else 0,
        SPLITS=max(1, min(128, config.programs * multiprocessors // programs)),
        HEADS=heads,
        TOKENS=config.tokens,
    )


def _triton_dtype(name: str):
    import triton.language

    return {
        "float32": triton.language.float32,
        "bfloat16": triton.language.bfloat16,
        "float16": triton.language.float16,
    }[name]


def check(layout: CacheLayout, dtype, rotation: Rotation | None, scale: float) -> None:
    """Raises NotImplementedError, saying why, for what `attend` does not take."""
    no = lambda why: NotImplementedError(f"flash_tpa_triton: {why}")
    if dtype not in (jnp.bfloat16, jnp.float16):
        raise no(f"the cache must be bfloat16 or float16, not {dtype}")
    if any(d not in (16, 32, 64, 128, 256) for d in (layout.dim_k, layout.dim_v)):
        raise no(
            f"D and E must be powers of 2 from 16 to 256, not {layout.dim_k} and {layout.dim_v}"
        )
    if reason := unavailable():
        raise no(reason)


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
    """As mosaic_gpu.attend."""
    from pallas_kernels.decode.triton_kernels import flash_tpa_combine, flash_tpa_partials

    config = config or default_config(layout)
    B, N, M, H, E = len(lengths), query[0].shape[1], rows.shape[1], layout.heads, layout.dim_v
    rank_q = query[0].shape[2] if len(query) == 2 else 0
    shares = B // len(rows)
    sizes = constants(
        layout, B, M, N, rank_q, scale, multiprocessors(), config, shares=shares, rotation=rotation
    )
    splits = sizes["SPLITS"]
    query = tuple(x.astype(rows.dtype) for x in query)
    # one by one, since a partitioned function takes no constant arrays
    frequencies = (
        jnp.concatenate([jnp.full(1, x, jnp.float32) for x in rotation.frequencies])
        if rotation
        else lengths
    )
    # what a case does not have is given something that it does not look at
    o, m, l = launch(
        *(query if rank_q else (query[0], query[0])),
        lengths,
        rows,
        *(b or (rows,)),
        *(a or (rows, rows)),
        frequencies,
        kernel=flash_tpa_partials,
        out_shape=[
            jax.ShapeDtypeStruct((B, splits, N, H, E), jnp.float32),
            jax.ShapeDtypeStruct((B, splits, N, H), jnp.float32),
            jax.ShapeDtypeStruct((B, splits, N, H), jnp.float32),
        ],
        grid=(N * -(-H // sizes["HEADS"]), splits, B),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **sizes,
    )
    out, lse = launch(
        o,
        m,
        l,
        kernel=flash_tpa_combine,
        out_shape=[
            jax.ShapeDtypeStruct((B, N, H, E), dtype),
            jax.ShapeDtypeStruct((B, N, H), jnp.float32),
        ],
        grid=(N * H, B),
        num_warps=1,
        num_stages=3,
        NH=N * H,
        E=E,
        R_V=layout.rank_v,
        SPLITS=splits,
        PADDED_SPLITS=power_of_2(splits),
        CHUNK=min(16, power_of_2(splits)),
    )
    return out, lse
