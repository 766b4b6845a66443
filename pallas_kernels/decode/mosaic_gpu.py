"""FlashTPA decoding (the paper's Algorithms 1 and 3) for Hopper GPUs, in Pallas Mosaic GPU.

    q[h]      = 1/R_Q sum_r a_q[r, h] b_q[r]
    s[m, h]   = scale/R_K sum_r a_k[m, r, h] (b_k[m, r] . q[h])
    o[h]      = 1/R_V sum_m softmax_m(s[m, h]) sum_r a_v[m, r, h] b_v[m, r]

Two kernels. `_partials` walks the cache: its blocks divide all tokens of all sequences evenly among
themselves, whatever the lengths are, and leave one unnormalised result for each sequence that a
block touched. `_combine` merges a sequence's results by their log-sum-exps; it is launched while
`_partials` still runs and waits on the device.

Inside a block (one warpgroup) TMA brings a tile of tokens into a ring of shared-memory stages.
Heads are the rows of the tensor-core products, 64 at a time, and tokens are the columns:

    S   = q [64, D] @ b_k^T [D, tokens]  one wgmma for each rank of K
    S  *= a_k^T                          [heads, tokens]; ldmatrix reads it transposed
    P   = exp2(S - max)                  online softmax in float32; a row's maximum takes two
                                         shuffles and no barrier
    O  += (P * a_v^T) @ b_v              one wgmma for each rank of V; its left operand comes from
                                         registers

Rows past head H compute on undefined numbers and are never stored: no row depends on another.

`pallas_kernels.decode.flash_tpa.decode` calls `attend`.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.decode.cache_layout import CacheLayout, Rotation, round_up
from pallas_kernels.decode.work_split import WorkSplit
from pallas_kernels.device import multiprocessors
from pallas_kernels.hopper import index, loads, rope, stores, warps
from pallas_kernels.hopper.layouts import PARTIALS, ROW, ROWS, WARP_PARTIALS, WARP_ROWS, WGMMA

# Running maxima start here: finite, so that a tile without visible tokens gives no NaN.
LOWEST = -1e30
LOG2E = math.log2(math.e)
SHARED_MEMORY = 227 * 1024


@dataclasses.dataclass(frozen=True)
class Config:
    """Tile and pipeline sizes."""

    tokens: int  # a tile
    blocks_per_sm: int
    stages: int
    sms: int = 132


@dataclasses.dataclass(frozen=True)
class _Boxes:
    """How the A factors of a tile lie in shared memory: `count` boxes [tokens, columns], `ranks`
    ranks in each.

    `columns` is an odd number of 16-byte units, so that the 8 token rows which ldmatrix reads at
    once lie in 8 different groups of banks. What a box holds beyond its ranks is whatever follows
    in memory, and is not used.
    """

    count: int
    ranks: int
    columns: int

    @classmethod
    def of(cls, layout: CacheLayout):
        if not layout.stores_a:
            return cls(0, 1, 0)
        ranks, heads = layout.rank_k + layout.rank_v, layout.padded_heads
        pitch = lambda n: n * heads + (8 if n * heads // 8 % 2 == 0 else 0)
        # TMA takes at most 256 numbers per axis
        count = next(c for c in range(1, ranks + 1) if pitch(-(-ranks // c)) <= 256)
        return cls(count, -(-ranks // count), pitch(-(-ranks // count)))


def _one_copy(layout: CacheLayout, tokens: int) -> bool:
    """Whether keys and values read the same B factors from the same place: where wgmma takes both
    in chunks of 64.
    """
    return layout.shared_b and tokens >= 64


def _stage_bytes(layout: CacheLayout, tokens: int) -> int:
    boxes = _Boxes.of(layout)
    b_k, b_v = (
        layout.rank_k * round_up(layout.dim_k, 64),
        layout.rank_v * round_up(layout.dim_v, 64),
    )
    return (
        2 * tokens * (b_k + (0 if _one_copy(layout, tokens) else b_v) + boxes.count * boxes.columns)
    )


COMBINE_SHARED_MEMORY = 4096  # left free on an SM, so that a block of `_combine` can move in early


def default_config(
    layout: CacheLayout, new_tokens: int = 1, sms: int = 132, rotated: bool = False
) -> Config:
    """The first of the sizes, in the order of what measured best, whose stages fit in shared
    memory.

    Two stages are enough to keep the memory busy; longer rings only make some blocks wait for
    others' tiles.
    """
    query = _row_blocks(new_tokens, layout.heads) * ROWS * round_up(layout.dim_k, 64) * 2
    tries = [(64, 2, 2), (64, 1, 2), (32, 2, 2), (32, 1, 2), (32, 1, 1)]
    if new_tokens > 1:  # more arithmetic: two blocks on an SM come before large tiles
        tries = [(64, 2, 2), (32, 2, 2), *tries]
    for tokens, blocks_per_sm, stages in tries:
        free = (SHARED_MEMORY - COMBINE_SHARED_MEMORY) // blocks_per_sm - 4096 - query
        turned = 2 * tokens * layout.rank_k * round_up(layout.dim_k, 64) if rotated else 0
        if stages * _stage_bytes(layout, tokens) + turned <= free:
            return Config(tokens, blocks_per_sm, stages, sms)
    raise NotImplementedError(f"flash_tpa_mosaic: a tile of {layout} does not fit in shared memory")


def _row_blocks(new_tokens: int, heads: int) -> int:
    """The wgmmas' worth of rows that one block takes on: two at most, for their accumulators to
    stay in registers.
    """
    return min(2, -(-new_tokens * -(-heads // WARP_ROWS) // 4))


def _partials(
    query,
    rows,
    table,
    lengths,
    layout: CacheLayout,
    rotation: Rotation | None,
    scale: float,
    config: Config,
):
    """Unnormalised outputs [slots, N, H, E] and row maxima and sums [slots, N, H], float32, maxima
    in units of log2.
    """
    B, M = len(lengths), rows.shape[1]
    shares = B // len(rows)  # sequences that lie side by side in the rows
    factors = len(query) == 2
    N, R_Q = query[0].shape[1:3]
    H, D, E, R_K, R_V = layout.heads, layout.dim_k, layout.dim_v, layout.rank_k, layout.rank_v
    T, S = config.tokens, config.stages
    # wgmma takes its operands in chunks: 64 of D, and of E as many as it takes tokens at a time
    # (its left operand, in registers, comes in squares).
    D_chunks, E_chunk = -(-D // 64), min(T, 64)
    E_chunks = -(-E // E_chunk)
    E_pad = E_chunk * E_chunks
    boxes = _Boxes.of(layout)
    one_copy = _one_copy(layout, T)
    # A warp's 16 rows are 16 heads of one token. So many warps make up a token, so many wgmmas all
    # of them; a block does at most two, and blocks that share a part of the cache do the rest.
    token_warps = -(-H // WARP_ROWS)
    row_blocks = range(_row_blocks(N, H))
    groups = -(-N * token_warps // 4 // len(row_blocks))
    blocks = max(1, config.sms * config.blocks_per_sm // groups)
    slots = blocks + B
    dtype = rows.dtype
    swizzled = lambda width: (plgpu.SwizzleTransform(width * 2),)  # pyright: ignore[reportAbstractUsage] # concrete at run time
    tiled = lambda width: (plgpu.TilingTransform((8, width)), *swizzled(width))  # pyright: ignore[reportAbstractUsage] # concrete at run time

    def chunked(shape):
        """Shared memory for chunks [T, width]. In tiles of 8 rows, as wgmma wants them, a chunk as
        wide as its swizzle lies just as it does untiled. TMA is given the untiled view: only that
        may start anywhere in a row of the cache."""
        return plgpu.RefUnion(
            *[plgpu.SMEM(shape, dtype, transforms=view(shape[-1])) for view in (swizzled, tiled)]
        )

    def kernel(*refs):
        split = _split(refs, [len(query), 2 + (table is not None), 3])
        query_refs, (lengths_ref, rows_ref, *table_ref), (o_ref, m_ref, l_ref), scratch = split
        (b_k_rows, b_k), q, full, *scratch = scratch
        (b_v_rows, b_v), *scratch = [(None, b_k), *scratch] if one_copy else scratch
        a, *scratch = scratch if boxes.count else [None, *scratch]
        turned: Any = scratch[0] if rotation else None
        # Once everything before is done, let `_combine` start moving in. (In this order: it reads
        # the lengths before it waits.)
        plgpu.griddepcontrol_wait()
        plgpu.griddepcontrol_launch_dependents()
        g = lax.axis_index("block")
        warp_rows = [
            (lax.axis_index("group") * len(row_blocks) + i) * 4 + warps.warp() for i in row_blocks
        ]
        # (token, first head) of each
        rows_of = [
            (lax.div(w, token_warps), lax.rem(w, token_warps) * WARP_ROWS) for w in warp_rows
        ]
        schedule = WorkSplit(lengths_ref, B, M, T, blocks)
        start, stop = schedule.start(g), schedule.start(g + 1)
        b0, t0 = schedule.locate(start)
        left0 = schedule.tiles(b0) - t0

        def fetch(slot, b, t):
            own = rows_ref.at[lax.div(b, shares)], lax.rem(b, shares) * layout.width
            of_b = (table_ref[0], 0 * t) if table_ref else own

            def copy(source, first, width, destination):
                # The column is a traced value: a box may reach past the row's end, where TMA fills
                # in zeros.
                ref, origin = source
                plgpu.copy_gmem_to_smem(
                    ref.at[pl.ds(t * T, T), pl.ds(origin + first, width)],
                    destination,
                    full.at[slot],
                )

            for r, c in np.ndindex(R_K, D_chunks):
                copy(of_b, layout.b_k + r * D + c * 64, 64, b_k_rows.at[slot, r, c])
            for r, c in np.ndindex(0 if one_copy else R_V, E_chunks):
                copy(of_b, layout.b_v + r * E + c * E_chunk, E_chunk, b_v_rows.at[slot, r, c])
            for i in range(boxes.count):
                copy(
                    own,
                    layout.a_k + i * boxes.ranks * layout.padded_heads,
                    boxes.columns,
                    a.at[slot, i],
                )

        def times_a(x, slot, rank, h):
            if not layout.stores_a:
                return x
            box, i = divmod(rank, boxes.ranks)
            return x * loads.load_heads(a.at[slot, box], i * layout.padded_heads + h, T).astype(
                jnp.float32
            )

        # The query in two steps. Its numbers come by ordinary loads, which queue after whatever
        # TMA has requested: so they are issued early, and used once the ring is filled.
        lhs, rhs, acc = (
            x(dtype) for x in (plgpu.Layout.MMA_LHS, plgpu.Layout.MMA_RHS, plgpu.Layout.MMA_ACC)
        )

        def ask_query(b):
            token, rank, K = (
                functools.partial(index.clamped_sum, N),
                functools.partial(index.clamped_sum, R_Q),
                round_up(R_Q, 16),
            )
            head = lambda h, i: index.clamped_sum(H, h, index.row_in_warp(i))
            feature = lambda c, j: index.clamped_sum(D, j, c * 64)
            if not factors:
                at = lambda c: lambda n, h, i, j: [token(n), head(h, i), feature(c, j)]
                q_ref = query_refs[0].at[b]
                return [
                    [loads.gather(q_ref, (ROWS, 64), WGMMA, nh, at(c)) for c in range(D_chunks)]
                    for nh in rows_of
                ]
            a_ref, b_ref = [ref.at[b] for ref in query_refs]
            a_at = lambda n, h, i, r: [token(n), rank(r), head(h, i)]
            b_at = lambda c: lambda n, h, r, j: [token(n), rank(r), feature(c, j)]
            a_q = [loads.gather(a_ref, (ROWS, K), lhs, nh, a_at) for nh in rows_of]
            b_q = [
                [
                    loads.gather(b_ref, (K, 64), rhs, nh, b_at(c), vector_axis=0)
                    for c in range(D_chunks)
                ]
                for nh in rows_of
            ]
            return a_q, b_q

        def set_query(asked):
            """Writes q, contracted and padded with zeros to 64 D_chunks features, where wgmma finds
            it.
            """
            for i, c in itertools.product(row_blocks, range(D_chunks)):
                if factors:
                    a_q, b_q = asked[0][i], asked[1][i][c]
                    if R_Q % 16:
                        real = plgpu.broadcasted_iota(jnp.int32, a_q.shape, 1, layout=lhs) < R_Q
                        a_q = jnp.where(real, a_q.astype(jnp.float32), 0.0).astype(dtype)
                    zero = plgpu.layout_cast(jnp.zeros((ROWS, 64), jnp.float32), acc)
                    chunk = plgpu.mma(zero, a_q, b_q) * (1 / R_Q)
                else:
                    chunk = asked[i][c]
                if D % 64:  # the keys' chunk holds other numbers there
                    column = plgpu.broadcasted_iota(jnp.int32, (ROWS, 64), 1, layout=WGMMA)
                    chunk = jnp.where(column < D - c * 64, chunk.astype(jnp.float32), 0.0)
                q[i, c] = chunk.astype(dtype)
            plgpu.commit_smem()

        def blank_tail(slot, valid):
            """Zeros after the end of the sequence: 0 times what lies there must be 0."""
            for r, c in np.ndindex(R_V, E_chunks):
                stores.zero_rows(b_v.at[slot, r, c], tiled(E_chunk), valid, T)
            for i in range(boxes.count):
                stores.zero_rows(a.at[slot, i], (), valid, T)
            plgpu.commit_smem()

        def turn_keys(slot, first):
            """Keys that are stored before RoPE: wgmma reads them from a place of their own,
            rotated.
            """
            for r in range(R_K):
                chunks = [(b_k.at[slot, r, c], turned.at[r, c]) for c in range(D_chunks)]
                sources, targets = zip(*chunks)
                rope.rotate(sources, targets, tiled(64), first, T, D, rotation)
            plgpu.commit_smem()

        if rotation and D % 64:
            for r in range(R_K):  # after D, where q is zero, something finite
                stores.zero_rows(turned.at[r, D_chunks - 1], tiled(64), jnp.int32(0), T)
            plgpu.commit_smem()

        # Fill the ring; the query after the first tile.
        ahead = b0, t0, left0
        for s in range(S):

            @pl.when(start + s < stop)
            def _(s=s, ahead=ahead):
                fetch(s, *ahead[:2])

            ahead = schedule.after(*ahead)
            if s == 0:
                asked = ask_query(b0)

        def segment(carry):
            """All of this block's tiles in one sequence."""
            i, b, t, left, ahead, asked = carry
            length = schedule.length(b)
            count = jnp.minimum(left, stop - i)
            set_query(asked)
            next_b, next_left = schedule.next_sequence(b)
            asked = lax.cond(i + left < stop, lambda: ask_query(next_b), lambda: asked)

            def tile(j, carry):
                i, states, ahead = carry
                slot = lax.rem(i - start, S)
                first = (t + j) * T
                plgpu.barrier_wait(full.at[slot])
                masked = first + T > length - (N - 1)
                pl.when(masked)(lambda: blank_tail(slot, length - first))
                if rotation:
                    turn_keys(slot, first)
                new_states = []
                for block, ((n, h), (o, m, l)) in enumerate(zip(rows_of, states)):

                    def scores(*accs):
                        for (r, acc), c in itertools.product(enumerate(accs), range(D_chunks)):
                            keys = turned.at[r, c] if rotation else b_k.at[slot, r, c]
                            plgpu.wgmma(acc, q.at[block, c], keys.transpose((1, 0)))
                        return [acc[...] for acc in accs]

                    parts = pl.run_scoped(scores, *[plgpu.ACC((ROWS, T), jnp.float32)] * R_K)  # pyright: ignore[reportPrivateImportUsage] # imported there
                    s = sum(times_a(part, slot, r, h) for r, part in enumerate(parts))
                    visible = length - (N - 1) + n - first

                    def mask(s):
                        column = plgpu.broadcasted_iota(jnp.int32, (ROWS, T), 1, layout=WGMMA)
                        return jnp.where(column < visible, s, -jnp.inf)

                    s = lax.cond(masked, mask, lambda s: s, s)
                    factor = scale / R_K * LOG2E
                    # exp2(s * factor - m) is one fused multiply-add and one exponential.
                    m_new = jnp.maximum(m, s.max(axis=1) * factor)
                    alpha = jnp.exp2(m - m_new)
                    p = jnp.exp2(s * factor - lax.broadcast_in_dim(m_new, s.shape, [0]))
                    l = l * alpha + p.sum(axis=1)
                    o = [x * lax.broadcast_in_dim(alpha, x.shape, [0]) for x in o]
                    weights = [times_a(p, slot, R_K + r, h).astype(dtype) for r in range(R_V)]

                    def values(accs):
                        for (r, weight), (c, acc) in itertools.product(
                            enumerate(weights), enumerate(accs)
                        ):
                            plgpu.wgmma(acc, weight, b_v.at[slot, r, c])

                    o = pl.run_state(values)([plgpu.ACC.init(x) for x in o])  # pyright: ignore[reportPrivateImportUsage] # imported there
                    new_states.append((o, m_new, l))

                @pl.when(i + S < stop)
                def _():
                    fetch(slot, *ahead[:2])

                return i + 1, new_states, schedule.after(*ahead)

            zero = lambda shape, layout, x=0.0: plgpu.layout_cast(
                jnp.full(shape, x, jnp.float32), layout
            )
            state = lambda: (
                [zero((ROWS, E_chunk), WGMMA)] * E_chunks,
                zero((ROWS,), ROW, LOWEST),
                zero((ROWS,), ROW),
            )
            i, states, ahead = lax.fori_loop(
                0, count, tile, (i, [state() for _ in row_blocks], ahead)
            )
            for (n, h), (o, m, l) in zip(rows_of, states):
                for c, x in enumerate(o):
                    stores.store_rows(
                        o_ref.at[g + b, :, :, pl.ds(c * E_chunk, E_chunk)], x, n, h, WGMMA
                    )
                stores.store_rows(m_ref.at[g + b], m, n, h, ROW)
                stores.store_rows(l_ref.at[g + b], l, n, h, ROW)
            return i, next_b, jnp.int32(0), next_left, ahead, asked

        lax.while_loop(lambda carry: carry[0] < stop, segment, (start, b0, t0, left0, ahead, asked))

    parts = plgpu.kernel(
        kernel,
        out_type=[
            jax.ShapeDtypeStruct((slots, N, H, E_pad), jnp.float32),
            jax.ShapeDtypeStruct((slots, N, H), jnp.float32),
            jax.ShapeDtypeStruct((slots, N, H), jnp.float32),
        ],
        scratch_types=[
            chunked((S, R_K, D_chunks, T, 64)),
            plgpu.SMEM((len(row_blocks), D_chunks, ROWS, 64), dtype, transforms=tiled(64)),
            plgpu.Barrier(
                num_arrivals=R_K * D_chunks + (not one_copy) * R_V * E_chunks + boxes.count,
                num_barriers=S,
            ),
            *([] if one_copy else [chunked((S, R_V, E_chunks, T, E_chunk))]),
            *[plgpu.SMEM((S, boxes.count, T, boxes.columns), dtype)] * (boxes.count > 0),
            *[plgpu.SMEM((R_K, D_chunks, T, 64), dtype, transforms=tiled(64))]
            * (rotation is not None),
        ],
        grid=(blocks, groups),
        grid_names=("block", "group"),
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        kernel_name="flash_tpa_partials",
    )(*query, lengths, rows, *([] if table is None else [table]))
    return parts, blocks


def _combine(
    parts, lengths, shape, capacity, layout: CacheLayout, config: Config, blocks: int, dtype
):
    """Merges each sequence's partial results; `blocks` is what `_partials` divided the work
    among.
    """
    o, m, l = parts
    B, N, H, E = shape
    R_V = layout.rank_v
    # A warp takes a head; or, where heads are few and their parts many, four warps take 16 columns
    # of one. A chunk of parts is read at once.
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
        lse_ref[b, n, h] = jnp.where(seen, (top + jnp.log2(total)) * (1 / LOG2E), -jnp.inf)

    return plgpu.kernel(
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
    parts, blocks = _partials(
        query, rows, b[0] if b else None, lengths, layout, rotation, scale, config
    )
    shape = len(lengths), N, layout.heads, layout.dim_v
    out, lse = _combine(parts, lengths, shape, rows.shape[1], layout, config, blocks, dtype)
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


def _split(sequence, counts):
    """The first counts[0] elements, the next counts[1], ..., and the rest."""
    ends = np.cumsum([0, *counts])
    return *[sequence[i:j] for i, j in zip(ends, ends[1:])], sequence[ends[-1] :]
