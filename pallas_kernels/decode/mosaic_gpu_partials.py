"""The first kernel of FlashTPA on Hopper: walks the cache and leaves partial results.

Inside a thread block (one warpgroup) TMA brings a tile of tokens into a ring of shared-memory
stages. Heads are the rows of the tensor-core products, 64 at a time, and tokens are the columns:

    S   = q [64, D] @ b_k^T [D, tokens]  one wgmma for each rank of K
    S  *= a_k^T                          [heads, tokens]; ldmatrix reads it transposed
    P   = exp2(S - max)                  online softmax in float32; a row's maximum takes two
                                         shuffles and no barrier
    O  += (P * a_v^T) @ b_v              one wgmma for each rank of V; its left operand comes from
                                         registers

Rows past head H compute on undefined numbers and are never stored: no row depends on another.
"""

import dataclasses
import functools
import itertools
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.decode.cache_layout import CacheLayout, Rotation, round_up
from pallas_kernels.decode.mosaic_gpu_config import ABoxes, Config, one_copy, row_blocks
from pallas_kernels.decode.work_split import WorkSplit
from pallas_kernels.hopper import index, loads, rope, stores, warps
from pallas_kernels.hopper.layouts import ROW, ROWS, WARP_ROWS, WGMMA

# Running maxima start here: finite, so that a tile without visible tokens gives no NaN.
LOWEST = -1e30
LOG2E = math.log2(math.e)


class Partials(NamedTuple):
    """Unnormalised results, each of one sequence's tokens in one thread block.

    Thread block g keeps what it has of sequence b in slot g + b.
    """

    o: jax.Array  # [slots, N, H, E padded], float32
    m: jax.Array  # [slots, N, H], float32, row maxima in units of log2
    l: jax.Array  # [slots, N, H], float32, row sums
    blocks: int  # the thread blocks that the work is divided among


class RowState(NamedTuple):
    """The online softmax of 64 rows."""

    o: list[Any]  # one array [64, columns] for each chunk of E
    m: jax.Array
    l: jax.Array


class Tile(NamedTuple):
    """A tile of the walk: tile `number` of a sequence, which has `left` tiles from it on."""

    sequence: Any
    number: Any
    left: Any


@dataclasses.dataclass(frozen=True)
class Call:
    """What is static in a call."""

    layout: CacheLayout
    config: Config
    rotation: Rotation | None
    scale: float
    dtype: Any  # of the cache
    query_axes: tuple[int, ...]  # of the query's first array
    factored_query: bool  # the query is (a_q, b_q)
    batch: int  # sequences
    capacity: int  # M, tokens allocated for each
    per_row: int  # sequences that lie side by side in the cache's rows
    has_table: bool  # the B factors are in a table by position

    @property
    def new_tokens(self) -> int:
        return self.query_axes[1]

    @property
    def rank_q(self) -> int:
        return self.query_axes[2]

    # wgmma takes its operands in chunks: 64 of D, and of E as many as it takes tokens at a time
    # (its left operand, in registers, comes in squares).
    @property
    def d_chunks(self) -> int:
        return -(-self.layout.dim_k // 64)

    @property
    def e_chunk(self) -> int:
        return min(self.config.tokens, 64)

    @property
    def e_chunks(self) -> int:
        return -(-self.layout.dim_v // self.e_chunk)

    @property
    def boxes(self) -> ABoxes:
        return ABoxes.of(self.layout)

    @property
    def one_copy(self) -> bool:
        return one_copy(self.layout, self.config.tokens)

    # A warp's 16 rows are 16 heads of one token. So many warps make up a token, so many wgmmas all
    # of them; a thread block does at most two, and the thread blocks of a group, which share a
    # stretch of the cache, do the rest.
    @property
    def token_warps(self) -> int:
        return -(-self.layout.heads // WARP_ROWS)

    @property
    def row_blocks(self) -> range:
        return range(row_blocks(self.new_tokens, self.layout.heads))

    @property
    def groups(self) -> int:
        return -(-self.new_tokens * self.token_warps // 4 // len(self.row_blocks))

    @property
    def blocks(self) -> int:
        return max(1, self.config.sms * self.config.blocks_per_sm // self.groups)

    def scratch(self) -> dict[str, Any]:
        """The ring's memory, the query's, and the barriers, by name."""
        T, S, layout = self.config.tokens, self.config.stages, self.layout
        scratch = {
            "b_k": self._chunks((S, layout.rank_k, self.d_chunks, T, 64)),
            "q": plgpu.SMEM(
                (len(self.row_blocks), self.d_chunks, ROWS, 64), self.dtype, transforms=tiled(64)
            ),
            "full": plgpu.Barrier(num_arrivals=self._copies(), num_barriers=S),
        }
        if not self.one_copy:
            scratch["b_v"] = self._chunks((S, layout.rank_v, self.e_chunks, T, self.e_chunk))
        if self.boxes.count:
            scratch["a"] = plgpu.SMEM((S, self.boxes.count, T, self.boxes.columns), self.dtype)
        if self.rotation:
            scratch["rotated"] = plgpu.SMEM(
                (layout.rank_k, self.d_chunks, T, 64), self.dtype, transforms=tiled(64)
            )
        return scratch

    def _copies(self) -> int:
        """The copies that bring a tile."""
        of_v = 0 if self.one_copy else self.layout.rank_v * self.e_chunks
        return self.layout.rank_k * self.d_chunks + of_v + self.boxes.count

    def _chunks(self, shape: tuple[int, ...]) -> Any:
        """Shared memory for chunks [T, width].

        In tiles of 8 rows, as wgmma wants them, a chunk as wide as its swizzle lies just as it does
        untiled. TMA is given the untiled view: only that may start anywhere in a row of the cache.
        """
        return plgpu.RefUnion(
            *[
                plgpu.SMEM(shape, self.dtype, transforms=view(shape[-1]))
                for view in (swizzled, tiled)
            ]
        )


def swizzled(width: int) -> tuple:
    """The transforms of a chunk `width` numbers wide as TMA writes it."""
    return (plgpu.SwizzleTransform(width * 2),)  # pyright: ignore[reportAbstractUsage] # concrete at run time


def tiled(width: int) -> tuple:
    """The transforms of the same chunk as wgmma reads it."""
    return (plgpu.TilingTransform((8, width)), *swizzled(width))  # pyright: ignore[reportAbstractUsage] # concrete at run time


def partials(
    query: tuple[jax.Array, ...],
    rows: jax.Array,
    table: jax.Array | None,
    lengths: jax.Array,
    layout: CacheLayout,
    rotation: Rotation | None,
    scale: float,
    config: Config,
) -> Partials:
    """The partial results of each sequence; arguments as those of `mosaic_gpu.attend`."""
    call = Call(
        layout,
        config,
        rotation,
        scale,
        dtype=rows.dtype,
        query_axes=query[0].shape,
        factored_query=len(query) == 2,
        batch=len(lengths),
        capacity=rows.shape[1],
        per_row=len(lengths) // len(rows),
        has_table=table is not None,
    )
    scratch = call.scratch()
    names = ["a_q", "b_q"] if call.factored_query else ["q_dense"]
    names += ["lengths", "rows", *["table"] * call.has_table, "o", "m", "l", *scratch]

    def kernel(*refs):
        # Once everything before is done, let the combining kernel start moving in. (In this order:
        # it reads the lengths before it waits.)
        plgpu.griddepcontrol_wait()
        plgpu.griddepcontrol_launch_dependents()
        ThreadBlock(call, SimpleNamespace(**dict(zip(names, refs, strict=True)))).run()

    slots = call.blocks + call.batch
    shape = slots, call.new_tokens, layout.heads
    o, m, l = plgpu.kernel(
        kernel,
        out_type=[
            jax.ShapeDtypeStruct((*shape, call.e_chunk * call.e_chunks), jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        ],
        scratch_types=list(scratch.values()),
        grid=(call.blocks, call.groups),
        grid_names=("block", "group"),
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        kernel_name="flash_tpa_partials",
    )(*query, lengths, rows, *([] if table is None else [table]))
    return Partials(o, m, l, call.blocks)


class ThreadBlock:
    """The work of one thread block: its tiles, sequence after sequence."""

    def __init__(self, call: Call, refs: SimpleNamespace):
        self.call, self.refs = call, refs
        layout, config = call.layout, call.config
        self.H, self.D = layout.heads, layout.dim_k
        self.R_K, self.R_V = layout.rank_k, layout.rank_v
        self.T, self.S = config.tokens, config.stages
        self.b_k_untiled, self.b_k = refs.b_k
        self.b_v_untiled, self.b_v = refs.b_k if call.one_copy else refs.b_v
        self.number = lax.axis_index("block")
        warp_rows = [
            (lax.axis_index("group") * len(call.row_blocks) + i) * 4 + warps.warp()
            for i in call.row_blocks
        ]
        # (new token, first head) of each
        self.rows_of = [
            (lax.div(w, call.token_warps), lax.rem(w, call.token_warps) * WARP_ROWS)
            for w in warp_rows
        ]
        self.schedule = WorkSplit(refs.lengths, call.batch, call.capacity, self.T, call.blocks)
        self.start = self.schedule.start(self.number)
        self.stop = self.schedule.start(self.number + 1)

    def run(self) -> None:
        """All of this thread block's tiles."""
        b, t = self.schedule.locate(self.start)
        first = Tile(b, t, self.schedule.tiles(b) - t)
        if self.call.rotation and self.D % 64:
            for r in range(self.R_K):  # after D, where q is zero, something finite
                last = self.refs.rotated.at[r, self.call.d_chunks - 1]
                stores.zero_rows(last, tiled(64), jnp.int32(0), self.T)
            plgpu.commit_smem()
        ahead, query = self._fill_ring(first)
        lax.while_loop(
            lambda carry: carry[0] < self.stop, self._segment, (self.start, *first, ahead, query)
        )

    def _fill_ring(self, first: Tile) -> tuple[Tile, Any]:
        """Requests the first tiles, and the query after the first of them."""
        ahead, query = first, None
        for s in range(self.S):

            @pl.when(self.start + s < self.stop)
            def _(s=s, ahead=ahead):
                self._fetch(s, ahead)

            ahead = Tile(*self.schedule.after(*ahead))
            if s == 0:
                query = self._request_query(first.sequence)
        return ahead, query

    def _fetch(self, slot, tile: Tile) -> None:
        """Requests a tile from memory into a stage of the ring."""
        call, refs, layout = self.call, self.refs, self.call.layout
        row, member = lax.div(tile.sequence, call.per_row), lax.rem(tile.sequence, call.per_row)
        in_row = refs.rows.at[row], member * layout.width
        of_b = (refs.table, 0 * tile.number) if call.has_table else in_row

        def copy(source, first, width, destination):
            # The column is a traced value: a box may reach past the row's end, where TMA fills in
            # zeros.
            ref, origin = source
            plgpu.copy_gmem_to_smem(
                ref.at[pl.ds(tile.number * self.T, self.T), pl.ds(origin + first, width)],
                destination,
                refs.full.at[slot],
            )

        for r, c in np.ndindex(self.R_K, call.d_chunks):
            first = layout.b_k + r * self.D + c * 64
            copy(of_b, first, 64, self.b_k_untiled.at[slot, r, c])
        for r, c in np.ndindex(0 if call.one_copy else self.R_V, call.e_chunks):
            first = layout.b_v + r * layout.dim_v + c * call.e_chunk
            copy(of_b, first, call.e_chunk, self.b_v_untiled.at[slot, r, c])
        for i in range(call.boxes.count):
            first = layout.a_k + i * call.boxes.ranks * layout.padded_heads
            copy(in_row, first, call.boxes.columns, refs.a.at[slot, i])

    # The query comes in two steps. Its numbers come by ordinary loads, which queue after whatever
    # TMA has requested: so they are issued early, and used once the ring is filled.

    def _request_query(self, sequence) -> Any:
        """The numbers of a sequence's query, for each block of rows."""
        refs, chunks = self.refs, range(self.call.d_chunks)
        rank_q = self.call.rank_q
        token = functools.partial(index.clamped_sum, self.call.new_tokens)

        def rank(r):
            return index.clamped_sum(rank_q, r)

        def head(h, row):
            return index.clamped_sum(self.H, h, index.row_in_warp(row))

        def feature(chunk, column):
            return index.clamped_sum(self.D, column, chunk * 64)

        if not self.call.factored_query:
            q_ref = refs.q_dense.at[sequence]

            def gather_q(c, rows):
                def at(n, h, row, column):
                    return [token(n), head(h, row), feature(c, column)]

                return loads.gather(q_ref, (ROWS, 64), WGMMA, rows, at)

            return [[gather_q(c, rows) for c in chunks] for rows in self.rows_of]

        a_ref, b_ref = refs.a_q.at[sequence], refs.b_q.at[sequence]
        ranks = round_up(rank_q, 16)
        lhs, rhs = plgpu.Layout.MMA_LHS(self.call.dtype), plgpu.Layout.MMA_RHS(self.call.dtype)

        def gather_a(rows):
            def at(n, h, row, r):
                return [token(n), rank(r), head(h, row)]

            return loads.gather(a_ref, (ROWS, ranks), lhs, rows, at)

        def gather_b(c, rows):
            def at(n, h, r, column):
                return [token(n), rank(r), feature(c, column)]

            return loads.gather(b_ref, (ranks, 64), rhs, rows, at, vector_axis=0)

        a_q = [gather_a(rows) for rows in self.rows_of]
        b_q = [[gather_b(c, rows) for c in chunks] for rows in self.rows_of]
        return a_q, b_q

    def _set_query(self, requested: Any) -> None:
        """Writes q, contracted and padded with zeros to whole chunks of 64 features, where wgmma
        finds it.
        """
        dtype, rank_q = self.call.dtype, self.call.rank_q
        for i, c in itertools.product(self.call.row_blocks, range(self.call.d_chunks)):
            if self.call.factored_query:
                a_q, b_q = requested[0][i], requested[1][i][c]
                if rank_q % 16:
                    lhs = plgpu.Layout.MMA_LHS(dtype)
                    exists = plgpu.broadcasted_iota(jnp.int32, a_q.shape, 1, layout=lhs) < rank_q
                    a_q = jnp.where(exists, a_q.astype(jnp.float32), 0.0).astype(dtype)
                zero = _full((ROWS, 64), plgpu.Layout.MMA_ACC(dtype))
                chunk = plgpu.mma(zero, a_q, b_q) * (1 / rank_q)
            else:
                chunk = requested[i][c]
            if self.D % 64:  # the keys' chunk holds other numbers there
                column = plgpu.broadcasted_iota(jnp.int32, (ROWS, 64), 1, layout=WGMMA)
                chunk = jnp.where(column < self.D - c * 64, chunk.astype(jnp.float32), 0.0)
            self.refs.q[i, c] = chunk.astype(dtype)
        plgpu.commit_smem()

    def _blank_tail(self, slot, valid) -> None:
        """Zeros after the end of the sequence: 0 times what lies there must be 0."""
        for r, c in np.ndindex(self.R_V, self.call.e_chunks):
            stores.zero_rows(self.b_v.at[slot, r, c], tiled(self.call.e_chunk), valid, self.T)
        for i in range(self.call.boxes.count):
            stores.zero_rows(self.refs.a.at[slot, i], (), valid, self.T)
        plgpu.commit_smem()

    def _rotate_keys(self, slot, first) -> None:
        """Keys that are stored before RoPE: wgmma reads them, rotated, from memory of their own."""
        for r in range(self.R_K):
            chunks = range(self.call.d_chunks)
            sources = [self.b_k.at[slot, r, c] for c in chunks]
            targets = [self.refs.rotated.at[r, c] for c in chunks]
            rope.rotate(sources, targets, tiled(64), first, self.T, self.D, self.call.rotation)
        plgpu.commit_smem()

    def _times_a(self, x, slot, rank, h):
        """x [64, tokens] times the A factors of a rank, counted from those of the keys."""
        layout, boxes = self.call.layout, self.call.boxes
        if not layout.stores_a:
            return x
        box, i = divmod(rank, boxes.ranks)
        column = i * layout.padded_heads + h
        return x * loads.load_heads(self.refs.a.at[slot, box], column, self.T).astype(jnp.float32)

    def _segment(self, carry):
        """All of this thread block's tiles in one sequence.

        carry: (tile counted over all sequences, sequence, tile in it, tiles left in it, the next
        tile to request, the sequence's query).
        """
        i, b, t, left, ahead, query = carry
        length = self.schedule.length(b)
        count = jnp.minimum(left, self.stop - i)
        self._set_query(query)
        next_b, next_left = self.schedule.next_sequence(b)
        query = lax.cond(i + left < self.stop, lambda: self._request_query(next_b), lambda: query)

        def tile(j, carry):
            i, states, ahead = carry
            slot = lax.rem(i - self.start, self.S)
            first = (t + j) * self.T
            states = self._attend_to_tile(slot, first, length, states)

            @pl.when(i + self.S < self.stop)
            def _():
                self._fetch(slot, ahead)

            return i + 1, states, Tile(*self.schedule.after(*ahead))

        states = [self._empty_state() for _ in self.call.row_blocks]
        i, states, ahead = lax.fori_loop(0, count, tile, (i, states, ahead))
        self._store(b, states)
        return i, next_b, jnp.int32(0), next_left, ahead, query

    def _empty_state(self) -> RowState:
        o = [_full((ROWS, self.call.e_chunk), WGMMA)] * self.call.e_chunks
        return RowState(o, _full((ROWS,), ROW, LOWEST), _full((ROWS,), ROW))

    def _attend_to_tile(self, slot, first, length, states: list[RowState]) -> list[RowState]:
        """The states after the tile in this stage of the ring, whose tokens start at `first`."""
        N = self.call.new_tokens
        plgpu.barrier_wait(self.refs.full.at[slot])
        masked = first + self.T > length - (N - 1)
        pl.when(masked)(lambda: self._blank_tail(slot, length - first))
        if self.call.rotation:
            self._rotate_keys(slot, first)
        new_states = []
        for block, ((n, h), state) in enumerate(zip(self.rows_of, states)):
            s = self._scores(slot, block, h)
            s = self._mask(s, masked, length - (N - 1) + n - first)
            new_states.append(self._add_values(state, s, slot, h))
        return new_states

    def _scores(self, slot, block, h):
        """sum_r a_k[m, r, h] (b_k[m, r] . q[h]) of a block of rows, [64, tokens]."""

        def keys(r, c):
            return self.refs.rotated.at[r, c] if self.call.rotation else self.b_k.at[slot, r, c]

        def products(*accs):
            for (r, acc), c in itertools.product(enumerate(accs), range(self.call.d_chunks)):
                plgpu.wgmma(acc, self.refs.q.at[block, c], keys(r, c).transpose((1, 0)))
            return [acc[...] for acc in accs]

        accs = [plgpu.ACC((ROWS, self.T), jnp.float32)] * self.R_K  # pyright: ignore[reportPrivateImportUsage] # imported there
        by_rank = pl.run_scoped(products, *accs)
        return sum(self._times_a(x, slot, r, h) for r, x in enumerate(by_rank))

    def _mask(self, s, masked, visible):
        """Scores with -inf from token `visible` on, where any are to be masked."""

        def mask(s):
            column = plgpu.broadcasted_iota(jnp.int32, (ROWS, self.T), 1, layout=WGMMA)
            return jnp.where(column < visible, s, -jnp.inf)

        return lax.cond(masked, mask, lambda s: s, s)

    def _add_values(self, state: RowState, s, slot, h) -> RowState:
        """One step of the online softmax."""
        o, m, l = state
        factor = self.call.scale / self.R_K * LOG2E
        # exp2(s * factor - m) is one fused multiply-add and one exponential.
        m_new = jnp.maximum(m, s.max(axis=1) * factor)
        alpha = jnp.exp2(m - m_new)
        p = jnp.exp2(s * factor - lax.broadcast_in_dim(m_new, s.shape, [0]))
        l = l * alpha + p.sum(axis=1)
        o = [x * lax.broadcast_in_dim(alpha, x.shape, [0]) for x in o]
        weights = [
            self._times_a(p, slot, self.R_K + r, h).astype(self.call.dtype) for r in range(self.R_V)
        ]

        def products(accs):
            for (r, weight), (c, acc) in itertools.product(enumerate(weights), enumerate(accs)):
                plgpu.wgmma(acc, weight, self.b_v.at[slot, r, c])

        o = pl.run_state(products)([plgpu.ACC.init(x) for x in o])  # pyright: ignore[reportPrivateImportUsage] # imported there
        return RowState(o, m_new, l)

    def _store(self, sequence, states: list[RowState]) -> None:
        refs, width = self.refs, self.call.e_chunk
        slot = self.number + sequence
        for (n, h), (o, m, l) in zip(self.rows_of, states):
            for c, x in enumerate(o):
                columns = refs.o.at[slot, :, :, pl.ds(c * width, width)]
                stores.store_rows(columns, x, n, h, WGMMA)
            stores.store_rows(refs.m.at[slot], m, n, h, ROW)
            stores.store_rows(refs.l.at[slot], l, n, h, ROW)


def _full(shape: tuple[int, ...], layout, value: float = 0.0) -> jax.Array:
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)
