"""FlashTPA decoding (the paper's Algorithm 3) in Triton, for the NVIDIA GPUs and the shapes that flash_tpa_mosaic does not take.

The same maths, cache and signature as there. A program takes one sequence, one of `splits` equal parts of its tokens, and a
block of heads of one new token; XLA contracts the query's factors before and merges the parts behind.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.tpa_cache import CacheLayout

LOG2E = math.log2(math.e)


def _power_of_2(x: int) -> int:
    return 1 << (x - 1).bit_length()


def constants(layout: CacheLayout, capacity: int, new_tokens: int, batch: int, scale: float, multiprocessors: int) -> dict:
    """The kernel's compile-time constants. None of them depends on the lengths."""
    heads = min(64, max(16, _power_of_2(layout.heads)))
    programs = batch * new_tokens * -(-layout.heads // heads)
    return dict(
        M=capacity,
        W=layout.width,
        W_B=layout.b_width,
        N=new_tokens,
        H=layout.heads,
        D=layout.dim_k,
        E=layout.dim_v,
        R_K=layout.rank_k,
        R_V=layout.rank_v,
        PADDED_H=layout.padded_heads,
        B_K=layout.b_k,
        B_V=layout.b_v,
        A_K=layout.a_k,
        A_V=layout.a_v,
        SCALE=scale / layout.rank_k * LOG2E,
        TABLE=not layout.stores_b,
        CONSTANT_A=not layout.stores_a,
        SPLITS=max(1, min(64, 4 * multiprocessors // programs)),
        HEADS=heads,
        TOKENS=64 if max(layout.dim_k, layout.dim_v) <= 64 else 32,
    )


def decode(
    query,
    rows: jax.Array,
    lengths: jax.Array,
    layout: CacheLayout,
    *,
    a: tuple[jax.Array, jax.Array] | None = None,
    b: jax.Array | None = None,
    scale: float | None = None,
    return_lse: bool = False,
):
    """As flash_tpa_mosaic.decode; needs the package jax-triton."""
    no = lambda why: NotImplementedError(f"flash_tpa_triton: {why}")
    if rows.dtype not in (jnp.bfloat16, jnp.float16):
        raise no(f"the cache must be bfloat16 or float16, not {rows.dtype}")
    if any(d not in (16, 32, 64, 128, 256) for d in (layout.dim_k, layout.dim_v)):
        raise no(f"D and E must be powers of 2 from 16 to 256, not {layout.dim_k} and {layout.dim_v}")
    if rows.shape[-1] != layout.width:
        raise ValueError(f"rows are {rows.shape[-1]} numbers wide, but {layout} has {layout.width}")
    if (a is None) != layout.stores_a or (b is None) != layout.stores_b:
        raise ValueError(f"a and b are given exactly where the rows do not hold those factors, and {layout} was given")
    try:
        import jax_triton

        from pallas_kernels.flash_tpa_triton_kernel import flash_tpa
    except ImportError as error:
        raise no(f"it needs the package jax-triton ({error})") from error

    if isinstance(query, (tuple, list)):
        a_q, b_q = [x.astype(jnp.float32) for x in query]
        q = jnp.einsum("bnrh,bnrd->bnhd", a_q, b_q, precision=lax.Precision.HIGHEST) / a_q.shape[2]
        dtype = query[0].dtype
    else:
        q, dtype = query, query.dtype
    (B, M, _), N, H, E = rows.shape, q.shape[1], layout.heads, layout.dim_v
    scale = layout.dim_k**-0.5 if scale is None else scale
    sizes = constants(layout, M, N, B, scale, _multiprocessors())
    splits, head_blocks = sizes["SPLITS"], -(-H // sizes["HEADS"])
    a_k, a_v = a or (rows, rows)  # not looked at
    o, m, l = jax_triton.triton_call(
        q.astype(rows.dtype),
        lengths.astype(jnp.int32),
        rows,
        rows if b is None else b,
        a_k,
        a_v,
        kernel=flash_tpa,
        out_shape=[
            jax.ShapeDtypeStruct((B, splits, N, H, E), jnp.float32),
            jax.ShapeDtypeStruct((B, splits, N, H), jnp.float32),
            jax.ShapeDtypeStruct((B, splits, N, H), jnp.float32),
        ],
        grid=(N * head_blocks, splits, B),
        name="flash_tpa_triton",
        num_warps=4,
        num_stages=2,
        **sizes,
    )
    top = m.max(axis=1)
    weight = jnp.exp2(m - top[:, None])
    total = (l * weight).sum(axis=1)
    seen = total > 0
    safe = jnp.where(seen, total, 1)
    out = (o * weight[..., None]).sum(axis=1) * jnp.where(seen, 1 / (layout.rank_v * safe), 0)[..., None]
    lse = jnp.where(seen, (top + jnp.log2(safe)) / LOG2E, -jnp.inf)
    return (out.astype(dtype), lse) if return_lse else out.astype(dtype)


@functools.cache
def _multiprocessors() -> int:
    gpus = [device for device in jax.devices() if device.platform == "gpu"]
    return getattr(gpus[0], "core_count", 108) if gpus else 108
