"""Causal attention over whole sequences for Hopper GPUs, in Pallas Mosaic GPU: softmax(scale Q K^T)
V and its log-sum-exps.

A CTA (thread block) takes 256 queries of a (sequence, head) at a time and walks over the keys, 64
at a time, from the diagonal back to the first. Its five warpgroups are specialised and synchronise
through rings of barriers:

    0 to 3  64 queries each: S = Q K^T, P = exp2(S - shift) in registers, O += P V. While the
            products of one are under way, the others compute their weights.
    4       issues the TMA copies of all tiles.

A row's shift is its largest score among the first keys that are visited, those of the diagonal, and
stays. P and its sums have float32's range (bfloat16 has it too), so that a later score may be 2^64
times as heavy and neither overflows nor loses anything: no other maximum is computed, and nothing
is rescaled. The sum tells where that was not enough; a warpgroup then computes its queries again,
with a maximum that follows the scores.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.attention import gradient
from pallas_kernels.attention.chunks import Chunks
from pallas_kernels.attention.gradient import ArrayLike
from pallas_kernels.attention.tiles import COMPILER_PARAMS, DIM, PRODUCT, TILED
from pallas_kernels.batching import row_wise
from pallas_kernels.hopper import score_tiles, votes
from pallas_kernels.hopper.layouts import ROW, ROWS, WGMMA

GROUPS = 4  # warpgroups of queries
BLOCK = GROUPS * ROWS
RING = 6  # tiles of keys and of values that a ring holds
REGISTERS = 112, 32  # of a thread: in warpgroups 0 to 3, in 4
MAX_SUM = 2.0**64  # of a row, in units of its shift, before it is computed again


def unsupported(
    query: Float[ArrayLike, "B T H D"],
    key: Float[ArrayLike, "B S G D"],
    value: Float[ArrayLike, "B S G E"],
    chunks: Any = None,
) -> str | None:
    """Why the kernel does not take these arrays, or None. chunks: only whether there are any."""
    if reason := gradient.unsupported(query, key, value, chunks):
        return reason
    if chunks is not None and query.shape[1] % (2 * BLOCK):
        return f"with chunks, T must be a multiple of {2 * BLOCK}, not {query.shape[1]}"
    if query.dtype != jnp.bfloat16:
        return f"the arrays must be bfloat16, whose range P needs, not {query.dtype}"
    return None


def attention_forward(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S H D"],
    value: Float[Array, "B S H D"],
    chunks: Int[Array, "2"] | None = None,
    *,
    scale: float,
    sms: int = 132,
) -> tuple[Float[Array, "B T H D"], Float[Array, "B H T"]]:
    """softmax(scale Q K^T) V under a causal mask (eq. 3.2), and the log-sum-exps of scale Q K^T.

    Args:
        query: bfloat16; T a multiple of 128, D = 64.
        key: bfloat16; S = T without chunks.
        value: As the key.
        chunks: The numbers of the two chunks, of T/2 of the S tokens each, that the halves of the
            queries are; the earlier one first. S must be a multiple of T, and T of 512.
        scale: Above 0.
        sms: The GPU's multiprocessors: so many CTAs run at a time.

    Returns:
        The output, bfloat16, and the log-sum-exps, float32. Under vmap the mapped axis becomes part
        of B.

    Raises:
        NotImplementedError: The kernel does not take the arrays; see `unsupported`.
        ValueError: The scale is not above 0.
    """
    if reason := unsupported(query, key, value, chunks):
        raise NotImplementedError(f"attention_forward: {reason}")
    if scale <= 0:
        raise ValueError(f"attention_forward: scale must be above 0, not {scale}")
    shared = () if chunks is None else (chunks,)
    run = lambda *operands: tuple(_kernel(operands, scale, sms))
    return row_wise(run, shared=len(shared))(query, key, value, *shared)


def _kernel(operands, scale, sms):
    query = operands[0]
    (B, T, H, _), dtype = query.shape, query.dtype
    blocks = -(-T // BLOCK)
    items = B * H * blocks
    ctas = min(sms, items)
    exponent = scale * math.log2(math.e)
    # How far apart, among the blocks of a head, an item of a CTA and its next are: coprime to their
    # number, so that it comes by all of them.
    stride = next(n for n in itertools.count() if math.gcd(ctas + n, blocks) == 1)

    def unravel(item):
        """An item's sequence, head and block of queries. Items that run at the same time share
        heads, hence keys in the L2 cache.
        """
        head = lax.div(item, blocks)
        block = lax.rem(item + stride * lax.div(head * blocks, ctas), blocks)
        return lax.div(head, H), lax.rem(head, H), blocks - 1 - block

    def kernel(*refs):
        q_ref, k_ref, v_ref, *chunks_ref = refs[: len(operands)]
        out_ref, lse_ref, q_s, k_s, v_s, out_s, lse_s, *barriers = refs[len(operands) :]
        q_full, q_empty, kv_full, kv_empty, tile_full = barriers
        cta, group = lax.axis_index("cta"), lax.axis_index("warpgroup")
        queries = Chunks(chunks_ref[0] if chunks_ref else None, T // ROWS)
        rows = lambda i, tile_row: pl.ds(i * BLOCK + tile_row * ROWS, ROWS)
        seen = lambda i, tile_row: queries.position(GROUPS * i + tile_row) + 1  # tiles of keys
        # the keys of tile n, counted from the last that is seen
        keys = lambda i, n: pl.ds((seen(i, GROUPS - 1) - 1 - n) * ROWS, ROWS)

        def for_each_item(body):
            """Calls body(b, h, i, number, step) -> step for each item, counting items and tiles of
            keys.
            """
            numbers = lax.div(items - cta + ctas - 1, ctas)
            lax.fori_loop(
                0,
                numbers,
                lambda number, step: body(*unravel(cta + number * ctas), number, step),
                jnp.int32(0),
            )

        @pl.when(group == GROUPS)
        def load():
            plgpu.set_max_registers(REGISTERS[1], action="decrease")

            def item(b, h, i, number, step):
                q_slot = lax.rem(number, 2)
                pl.when(number >= 2)(lambda: plgpu.barrier_wait(q_empty.at[q_slot]))
                for tile_row in range(GROUPS):
                    plgpu.copy_gmem_to_smem(
                        q_ref.at[b, rows(i, tile_row), h],
                        q_s.at[q_slot, tile_row],
                        q_full.at[q_slot],
                    )

                def tile(n, step):
                    slot = lax.rem(step, RING)
                    pl.when(step >= RING)(lambda: plgpu.barrier_wait(kv_empty.at[slot]))
                    plgpu.copy_gmem_to_smem(
                        k_ref.at[b, keys(i, n), h], k_s.at[slot], kv_full.at[slot]
                    )
                    plgpu.copy_gmem_to_smem(
                        v_ref.at[b, keys(i, n), h], v_s.at[slot], kv_full.at[slot]
                    )
                    return step + 1

                return lax.fori_loop(0, seen(i, GROUPS - 1), tile, step)

            for_each_item(item)

        @pl.when(group < GROUPS)
        def attend():
            plgpu.set_max_registers(REGISTERS[0], action="increase")
            group_out, group_lse = out_s.at[group], lse_s.at[group]
            group_tile_full = tile_full.at[group]
            across = lambda x: lax.broadcast_in_dim(x, (ROWS, ROWS), [0])

            def item(b, h, i, number, step):
                q_slot, slot_of = lax.rem(number, 2), lambda n: lax.rem(step + n, RING)
                q_tiles = q_s.at[q_slot]
                # in one item the queries that see more, in the next those that see less
                tile_row = jnp.where(lax.rem(number, 2) == 0, group, GROUPS - 1 - group)
                tiles = seen(i, GROUPS - 1)
                unseen = tiles - seen(i, tile_row)

                def scores(key_tile, diagonal):
                    def product(s):
                        plgpu.wgmma(s, q_tiles.at[tile_row], key_tile.transpose((1, 0)))
                        return s[...]

                    s = pl.run_scoped(product, PRODUCT)
                    return score_tiles.mask_above_diagonal(s, -math.inf) if diagonal else s

                def skip(n, _):
                    plgpu.barrier_wait(kv_full.at[slot_of(n)])
                    plgpu.barrier_arrive(kv_empty.at[slot_of(n)])

                def with_one_shift(out):
                    def visit(n, shift=None, total=None):
                        """What tile n's keys add to the output and to the sum. The first tile is
                        the diagonal's.
                        """
                        plgpu.barrier_wait(kv_full.at[slot_of(n)])
                        s = scores(k_s.at[slot_of(n)], diagonal=shift is None)
                        if shift is None:
                            shift = jnp.max(s, axis=1) * exponent
                        else:  # the weights' product before this one has ended too
                            plgpu.barrier_arrive(kv_empty.at[slot_of(n - 1)])
                        weights = jnp.exp2(s * exponent - across(shift))
                        total = score_tiles.add_columns(weights, total)
                        # sums are formed here, not when the weights' registers are wanted
                        weights, total = lax.optimization_barrier((weights.astype(dtype), total))
                        plgpu.wgmma(out, weights, v_s.at[slot_of(n)])
                        return shift, total

                    shift, total = visit(unseen)
                    total = lax.fori_loop(
                        unseen + 1, tiles, lambda n, total: visit(n, shift, total)[1], total
                    )
                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(kv_empty.at[slot_of(tiles - 1)])
                    return out[...], shift, jnp.sum(total, axis=1)

                def with_a_maximum():
                    """The same with shifts that follow the scores. Keys and values come through
                    this warpgroup's output buffer.
                    """

                    def tile_of(ref, n):
                        plgpu.commit_smem()  # all have read what is now overwritten
                        plgpu.copy_gmem_to_smem(
                            ref.at[b, keys(i, n), h], group_out, group_tile_full
                        )
                        plgpu.barrier_wait(group_tile_full)
                        return group_out

                    def visit(n, carry, diagonal=False):
                        out, shift, weight = carry
                        s = scores(tile_of(k_ref, n), diagonal)
                        highest = jnp.maximum(shift, jnp.max(s, axis=1) * exponent)
                        weights, kept = (
                            jnp.exp2(s * exponent - across(highest)),
                            jnp.exp2(shift - highest),
                        )
                        weight = weight * kept + jnp.sum(weights, axis=1)
                        tile = tile_of(v_ref, n)
                        add = pl.run_state(
                            lambda acc: plgpu.wgmma(acc, weights.astype(dtype), tile)
                        )
                        return add(plgpu.ACC.init(out * across(kept))), highest, weight  # pyright: ignore[reportPrivateImportUsage] # imported there

                    full = lambda x, shape, layout: plgpu.layout_cast(
                        jnp.full(shape, x, jnp.float32), layout
                    )
                    nothing = (
                        full(0.0, (ROWS, DIM), WGMMA),
                        full(-math.inf, (ROWS,), ROW),
                        full(0.0, (ROWS,), ROW),
                    )
                    found = lax.fori_loop(
                        unseen + 1, tiles, visit, visit(unseen, nothing, diagonal=True)
                    )
                    plgpu.commit_smem()  # all have read what is now overwritten
                    results(*found)

                def results(out, shift, weight):
                    group_out[...] = (out * across(1 / weight)).astype(dtype)
                    group_lse[...] = (shift + jnp.log2(weight)) * math.log(2)

                lax.fori_loop(0, unseen, skip, None)
                plgpu.barrier_wait(q_full.at[q_slot])
                out, shift, weight = pl.run_scoped(with_one_shift, PRODUCT)
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                results(out, shift, weight)
                pl.when(votes.any_above(weight, MAX_SUM))(with_a_maximum)
                plgpu.barrier_arrive(q_empty.at[q_slot])
                plgpu.commit_smem()

                @pl.when(i * BLOCK + tile_row * ROWS < T)
                def store():
                    plgpu.copy_smem_to_gmem(group_out, out_ref.at[b, rows(i, tile_row), h])
                    plgpu.copy_smem_to_gmem(group_lse, lse_ref.at[b, h, rows(i, tile_row)])

                return step + tiles

            for_each_item(item)
            plgpu.wait_smem_to_gmem(0)

    tiles = lambda *shape: plgpu.SMEM((*shape, ROWS, DIM), dtype, transforms=TILED)
    return plgpu.kernel(
        kernel,
        out_type=[
            jax.ShapeDtypeStruct(query.shape, dtype),
            jax.ShapeDtypeStruct((B, H, T), jnp.float32),
        ],
        scratch_types=[
            tiles(2, GROUPS),  # queries
            *[tiles(RING)] * 2,  # keys, values
            *[tiles(GROUPS), plgpu.SMEM((GROUPS, ROWS), jnp.float32)],  # results
            *[plgpu.Barrier(num_arrivals=GROUPS, num_barriers=2)] * 2,  # queries
            *[
                plgpu.Barrier(num_arrivals=n, num_barriers=RING) for n in (2, GROUPS)
            ],  # keys and values
            plgpu.Barrier(num_barriers=GROUPS),  # tiles that a warpgroup copies for itself
        ],
        grid=(ctas,),
        grid_names=("cta",),
        num_threads=GROUPS + 1,
        thread_name="warpgroup",
        compiler_params=COMPILER_PARAMS,
        kernel_name="attention_forward",
    )(*operands)
