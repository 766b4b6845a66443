"""The second kernel of FlashTPA on Hopper: merges each sequence's partial results."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.decode.cache_layout import CacheLayout, round_up
from pallas_kernels.decode.mosaic_gpu_config import Config
from pallas_kernels.decode.mosaic_gpu_partials import LOWEST, Partials
from pallas_kernels.decode.work_split import WorkSplit
from pallas_kernels.hopper import loads, stores, warps
from pallas_kernels.hopper.layouts import PARTIALS, WARP_PARTIALS

LN2 = 1 / math.log2(math.e)


def combine(
    partials: Partials,
    lengths: jax.Array,
    shape: tuple[int, int, int, int],
    capacity: int,
    layout: CacheLayout,
    config: Config,
    dtype,
) -> tuple[jax.Array, jax.Array]:
    """Merges each sequence's partial results by their log-sum-exps.

    Args:
        partials: What the first kernel left.
        lengths: [B], int32.
        shape: (B, N, H, E) of the output.
        capacity: Tokens allocated for each sequence.
        layout: Of the cache's rows.
        config: The first kernel's.
        dtype: Of the output.

    Returns:
        The output [B, N, H, E] and its float32 log-sum-exps [B, N, H].
    """
    o, m, l, blocks = partials
    B, N, H, E = shape
    R_V = layout.rank_v
    # A warp takes a head; or, where heads are few and their partial results many, four warps take
    # 16 columns of one. A chunk of them is read at once.
    few = B * N * H < 2 * config.sms
    width, chunk, LAYOUT = (
        (16, min(round_up(-(-blocks // B) + 2, 32), 320), PARTIALS)
        if few
        else (min(E, 64), 24, WARP_PARTIALS)
    )
    columns = E // width
    items = H * columns
    at_once = 1 if few else 4

    def kernel(lengths_ref, o_ref, m_ref, l_ref, out_ref, lse_ref):
        plgpu.griddepcontrol_launch_dependents()
        b, n, item = [lax.axis_index(name) for name in ("sequence", "token", "item")]
        if not few:
            item = jnp.minimum(item * at_once + warps.warp(), items - 1)
        h, e = lax.div(item, columns), lax.rem(item, columns) * width
        schedule = WorkSplit(lengths_ref, B, capacity, config.tokens, blocks)
        before = schedule.before(b)
        tiles = schedule.tiles(b)
        first = schedule.block(before)
        count = jnp.where(tiles > 0, schedule.block(before + tiles - 1) - first + 1, 0)
        visible = schedule.length(b) - (N - 1) + n
        plgpu.griddepcontrol_wait()

        def merge(c, carry):
            top, total, acc = carry
            start, last = first + b + c * chunk, first + b + count - 1
            m_c = loads.gather_rows(m_ref.at[:, n, h], (chunk,), LAYOUT.reduce(1), start, last)
            l_c = loads.gather_rows(l_ref.at[:, n, h], (chunk,), LAYOUT.reduce(1), start, last)
            o_c = loads.gather_rows(
                o_ref.at[:, n, h, pl.ds(e, width)], (chunk, width), LAYOUT, start, last
            )
            valid = (
                start + plgpu.broadcasted_iota(jnp.int32, (chunk,), 0, layout=LAYOUT.reduce(1))
                <= last
            )
            new_top = jnp.maximum(top, m_c.max())
            alpha = jnp.exp2(top - new_top)
            weight = jnp.where(valid, jnp.exp2(m_c - new_top), 0.0)
            total = total * alpha + (weight * l_c).sum()
            acc = acc * alpha + (
                o_c * plgpu.layout_cast(lax.broadcast_in_dim(weight, o_c.shape, [0]), LAYOUT)
            ).sum(axis=0)
            return new_top, total, acc

        acc = plgpu.layout_cast(jnp.zeros((width,), jnp.float32), LAYOUT.reduce(0))
        carry = (jnp.float32(LOWEST), jnp.float32(0), acc)
        top, total, acc = lax.fori_loop(0, lax.div(count + (chunk - 1), chunk), merge, carry)
        seen = (count > 0) & (visible > 0)
        out = acc * jnp.where(seen, 1 / (R_V * total), 0.0)
        result = jnp.where(seen, out, 0.0).astype(dtype)
        stores.store_short_row(out_ref, (b, n, h, pl.ds(e, width)), result)
        lse_ref[b, n, h] = jnp.where(seen, (top + jnp.log2(total)) * LN2, -jnp.inf)

    out, lse = plgpu.kernel(
        kernel,
        out_type=[
            jax.ShapeDtypeStruct((B, N, H, E), dtype),
            jax.ShapeDtypeStruct((B, N, H), jnp.float32),
        ],
        grid=(B, N, -(-items // at_once)),
        grid_names=("sequence", "token", "item"),
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        kernel_name="flash_tpa_combine",
    )(lengths, o, m, l)
    return out, lse
