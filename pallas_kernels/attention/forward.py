"""Causal attention over whole sequences for Hopper GPUs, in Pallas Mosaic GPU: softmax(scale Q K^T)
V and its log-sum-exps.

A thread block takes 256 queries of a (sequence, head) at a time and walks over the keys, 64 at a
time, from the diagonal back to the first. Its five warpgroups go their own ways, tied by rings of
barriers:

    0 to 3  64 queries each:  S = Q K^T, P = exp2(S - shift) in registers, O += P V. None looks
    ahead: while the products of
            one are under way, the others form their weights.
    4       asks TMA for all tiles.

A row's shift is its largest score among the first keys that are looked at, those of the diagonal,
and stays. P and its sums have float32's range (bfloat16 has it too), so that a later score may be
2^64 times as heavy and neither overflows nor loses anything: no maximum is formed but the first,
and nothing is scaled anew. The sum tells where that was not enough; a warpgroup then does its
queries again, with a maximum that follows the scores.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import gradient
from pallas_kernels.attention.chunks import Chunks
from pallas_kernels.attention.gradient import DIM, PRODUCT, TILED
from pallas_kernels.hopper import score_tiles, votes
from pallas_kernels.hopper.layouts import ROW, ROWS, WGMMA

PARTS = 4  # warpgroups of queries
BLOCK = PARTS * ROWS
RING = 6  # tiles of keys and of values under way
REGISTERS = 112, 32  # a thread's: of the warpgroups 0 to 3, of 4
HEAVIEST = 2.0**64  # that a row's sum may become, in units of its shift


def unsupported(query, key, value, chunks=None) -> str | None:
    """Why the kernel does not take these arrays [B, T, H, D], or None."""
    if reason := gradient.unsupported(query, key, value, chunks):
        return reason
    if chunks is not None and query.shape[1] % (2 * BLOCK):
        return f"T must be a multiple of {2 * BLOCK} where there are chunks, not {query.shape[1]}"
    return (
        None
        if query.dtype == jnp.bfloat16
        else f"the arrays must be bfloat16, whose range P needs, not {query.dtype}"
    )


def attention_forward(query, key, value, chunks=None, *, scale: float, sms: int = 132):
    """softmax(scale Q K^T) V under a causal mask, and the log-sum-exps of scale Q K^T: [B, T, H,
    64] bfloat16, [B, H, T] float32.

    query, key, value  [B, T, H, 64], bfloat16, T a multiple of 128
    chunks             int32 [2], where key and value are of S tokens: the halves of the queries are
                       chunks of T/2 of them, by number, the earlier one first; S a multiple of T, T
                       of 512
    scale              above 0
    sms                the GPU's multiprocessors: as many blocks of queries are under way at a time
    """
    if reason := unsupported(query, key, value, chunks):
        raise NotImplementedError(f"attention_forward: {reason}")
    if scale <= 0:
        raise ValueError(f"attention_forward: scale must be above 0, not {scale}")
    (B, T, H, _), dtype = query.shape, query.dtype
    blocks = -(-T // BLOCK)
    items = B * H * blocks
    ctas = min(sms, items)
    exponent = scale * math.log2(math.e)
    operands = [query, key, value, *([] if chunks is None else [chunks])]
    # steps from one item of a thread block to its next, among the blocks of a head: so that it
    # comes by all of them
    turn = next(n for n in itertools.count() if math.gcd(ctas + n, blocks) == 1)

    def place(item):
        """An item's sequence, head and block of queries. What is done at a time shares heads, hence
        keys, in the L2 cache.
        """
        head = lax.div(item, blocks)
        block = lax.rem(item + turn * lax.div(head * blocks, ctas), blocks)
        return lax.div(head, H), lax.rem(head, H), blocks - 1 - block

    def kernel(*refs):
        q_ref, k_ref, v_ref, *chunks_ref = refs[: len(operands)]
        out_ref, lse_ref, q_s, k_s, v_s, out_s, lse_s, *barriers = refs[len(operands) :]
        q_full, q_empty, kv_full, kv_empty, own_full = barriers
        cta, group = lax.axis_index("cta"), lax.axis_index("warpgroup")
        queries = Chunks(*chunks_ref or [None], T // ROWS)
        rows = lambda i, part: pl.ds(i * BLOCK + part * ROWS, ROWS)
        seen = lambda i, part: queries.place(PARTS * i + part) + 1  # tiles of keys
        keys = lambda i, n: pl.ds(
            (seen(i, PARTS - 1) - 1 - n) * ROWS, ROWS
        )  # of tile n, counted from the last that is seen

        def for_each_item(body):
            """Calls body(b, h, i, number, step) -> step for each item, counting items and tiles of
            keys.
            """
            numbers = lax.div(items - cta + ctas - 1, ctas)
            lax.fori_loop(
                0,
                numbers,
                lambda number, step: body(*place(cta + number * ctas), number, step),
                jnp.int32(0),
            )

        @pl.when(group == PARTS)
        def load():
            plgpu.set_max_registers(REGISTERS[1], action="decrease")

            def item(b, h, i, number, step):
                q_slot = lax.rem(number, 2)
                pl.when(number >= 2)(lambda: plgpu.barrier_wait(q_empty.at[q_slot]))
                for part in range(PARTS):
                    plgpu.copy_gmem_to_smem(
                        q_ref.at[b, rows(i, part), h], q_s.at[q_slot, part], q_full.at[q_slot]
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

                return lax.fori_loop(0, seen(i, PARTS - 1), tile, step)

            for_each_item(item)

        @pl.when(group < PARTS)
        def attend():
            plgpu.set_max_registers(REGISTERS[0], action="increase")
            out_own, lse_own, own = out_s.at[group], lse_s.at[group], own_full.at[group]
            across = lambda x: lax.broadcast_in_dim(x, (ROWS, ROWS), [0])

            def item(b, h, i, number, step):
                q_slot, slot_of = lax.rem(number, 2), lambda n: lax.rem(step + n, RING)
                q_tiles = q_s.at[q_slot]
                # by turns the queries that see more and that see less
                part = jnp.where(lax.rem(number, 2) == 0, group, PARTS - 1 - group)
                tiles = seen(i, PARTS - 1)
                unseen = tiles - seen(i, part)

                def scores(key_tile, diagonal):
                    def product(s):
                        plgpu.wgmma(s, q_tiles.at[part], key_tile.transpose((1, 0)))
                        return s[...]

                    s = pl.run_scoped(product, PRODUCT)
                    return score_tiles.mask_above_diagonal(s, -math.inf) if diagonal else s

                def skip(n, _):
                    plgpu.barrier_wait(kv_full.at[slot_of(n)])
                    plgpu.barrier_arrive(kv_empty.at[slot_of(n)])

                def with_one_shift(out):
                    def visit(n, shift=None, total=None):
                        """The part of tile n's keys in the output and in the sum. The first tile is
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
                    """The same with shifts that follow the scores; keys and values come through
                    this warpgroup's own buffer.
                    """

                    def tile_of(ref, n):
                        plgpu.commit_smem()  # all have read what is now written over
                        plgpu.copy_gmem_to_smem(ref.at[b, keys(i, n), h], out_own, own)
                        plgpu.barrier_wait(own)
                        return out_own

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
                        return add(plgpu.ACC.init(out * across(kept))), highest, weight

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
                    plgpu.commit_smem()  # all have read what is now written over
                    results(*found)

                def results(out, shift, weight):
                    out_own[...] = (out * across(1 / weight)).astype(dtype)
                    lse_own[...] = (shift + jnp.log2(weight)) * math.log(2)

                lax.fori_loop(0, unseen, skip, None)
                plgpu.barrier_wait(q_full.at[q_slot])
                out, shift, weight = pl.run_scoped(with_one_shift, PRODUCT)
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                results(out, shift, weight)
                pl.when(votes.any_above(weight, HEAVIEST))(with_a_maximum)
                plgpu.barrier_arrive(q_empty.at[q_slot])
                plgpu.commit_smem()

                @pl.when(i * BLOCK + part * ROWS < T)
                def store():
                    plgpu.copy_smem_to_gmem(out_own, out_ref.at[b, rows(i, part), h])
                    plgpu.copy_smem_to_gmem(lse_own, lse_ref.at[b, h, rows(i, part)])

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
            tiles(2, PARTS),  # queries
            *[tiles(RING)] * 2,  # keys, values
            *[tiles(PARTS), plgpu.SMEM((PARTS, ROWS), jnp.float32)],  # results
            *[plgpu.Barrier(num_arrivals=PARTS, num_barriers=2)] * 2,  # queries
            *[
                plgpu.Barrier(num_arrivals=n, num_barriers=RING) for n in (2, PARTS)
            ],  # keys and values
            plgpu.Barrier(num_barriers=PARTS),  # what a warpgroup asks for itself
        ],
        grid=(ctas,),
        grid_names=("cta",),
        num_threads=PARTS + 1,
        thread_name="warpgroup",
        # rings and commit_smem order what is stored to shared memory; see attention_gradient
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            unsafe_no_auto_barriers=True,
        ),
        kernel_name="attention_forward",
    )(*operands)
