"""The kernel of the gradient of causal attention for Hopper GPUs, in Pallas Mosaic GPU.

    P  = exp(scale Q K^T - lse)        dV = P^T dO        delta = rowsum(dO * O)
    dS = P * (dO V^T - delta)          dQ = scale dS K    dK    = scale dS^T Q

A cooperative group of CTAs (thread blocks), of one for short sequences, takes a (sequence, head) at
a time and walks over the lower triangle of its blocks of 128 queries x 128 keys. Each member goes
down the queries of one column, that of the last keys first, then of another (cta_groups.py). The
tiles and sums that members need at about the same time are thus few enough for the L2 cache.

The four warpgroups of a CTA are specialised and synchronise through rings of barriers:

    0, 1   64 keys each, as rows: S^T = K Q^T and dP^T = V dO^T. The accumulators start at
           -lse / scale and -delta, so that exp2 and one multiplication turn them into P^T and
           dS^T in registers: the left operands of dV += P^T dO and dK += dS^T Q. dS goes to shared
           memory.
    2      dQ = dS K of the block, added up in global memory: a float32 scratch for a group's head,
           in the order of a CTA's threads and their registers, to which TMA adds. The first visit
           to a block of queries stores, the last one reads the sum and writes dQ.
    3      issues the TMA copies of all tiles.

Visits to a block of queries are in a fixed order; where they are of several members, each waits
until a counter in memory says that those before it are done. So the results are the same bits every
time. Groups do not wait for one another, and the hardware starts CTAs in order: where something
else, such as a collective, holds multiprocessors, whole groups run to their end and make room for
the rest.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention.chunks import Chunks
from pallas_kernels.attention.cta_groups import CtaGroup
from pallas_kernels.attention.tiles import BLOCK, COMPILER_PARAMS, DIM, PRODUCT, TILED
from pallas_kernels.hopper import fences, register_order, votes
from pallas_kernels.hopper.layouts import COL, ROWS, WGMMA

RING = 2  # steps that a ring of buffers holds; for keys, columns
REGISTERS = 208, 72, 24  # of a thread: in warpgroups 0 and 1, in 2, in 3
SUMS_SHAPE = register_order.buffer_shape((ROWS, DIM))


class Column(NamedTuple):
    """A block of keys that a member of a group takes.

    Attributes:
        index: How many heads the group had before.
        b: Sequence.
        h: Head.
        round: Of the head's.
        j: Block of keys.
    """

    index: Any
    b: Any
    h: Any
    round: Any
    j: Any


@dataclasses.dataclass(frozen=True)
class Call:
    """What is static in a call.

    Args:
        batch, heads: B and H.
        blocks, key_blocks: Blocks of 128 queries and keys of a head.
        dtype: Of the arrays.
        scale: Of the logits.
        sms: Multiprocessors.
        size: CTAs of a group.
        has_chunks: Whether the queries are two chunks of a longer sequence.
    """

    batch: int
    heads: int
    blocks: int
    key_blocks: int
    dtype: Any
    scale: float
    sms: int
    size: int
    has_chunks: bool

    @property
    def items(self) -> int:
        return self.batch * self.heads

    @property
    def shared(self) -> bool:
        """Whether CTAs share heads."""
        return self.size > 1

    @property
    def groups(self) -> int:
        return min(self.sms // self.size, self.items)

    @property
    def buffers(self) -> int:
        """Scratch for sums of a group: those of a head may be under way while those of the head
        before are not yet fetched.
        """
        return 2 if self.shared else 1

    @property
    def group(self) -> CtaGroup:
        return CtaGroup(self.size, self.key_blocks)

    def scratch(self) -> dict[str, Any]:
        """Shared memory and barriers, by name."""
        return {
            "q": self._tiles(RING, 2),
            "do": self._tiles(RING, 2),
            "k": self._tiles(RING, 2),
            "v": self._tiles(2),
            "start_s": _floats(RING, BLOCK),
            "start_dp": _floats(RING, BLOCK),
            # dS^T by halves of queries, then of keys
            "ds": self._tiles(RING, 2, 2),
            # sums of dQ; dQ, all of it where the sums of half 0 were
            "sums_or_dq": plgpu.RefUnion(_floats(2, *SUMS_SHAPE), self._tiles(2)),
            "out": self._tiles(2),  # dK or dV of either warpgroup
            "q_full": _ring(6),  # queries and gradients
            "q_empty": _ring(2),
            "k_full": _ring(2),
            "k_empty": _ring(3),  # warpgroups 0 to 2 release keys
            "v_full": _ring(2, 1),
            "v_empty": _ring(2, 1),
            "ds_full": _ring(2),
            "ds_empty": _ring(1),
            "sums_full": _ring(2, 1),
        }

    def _tiles(self, *shape: int) -> Any:
        return plgpu.SMEM((*shape, ROWS, DIM), self.dtype, transforms=TILED)


def _floats(*shape: int) -> Any:
    return plgpu.SMEM(shape, jnp.float32)


def _ring(arrivals: int, slots: int = RING) -> Any:
    return plgpu.Barrier(num_arrivals=arrivals, num_barriers=slots)


def gradient_kernel(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    grad: jax.Array,
    start_s: jax.Array,
    start_dp: jax.Array,
    chunks: jax.Array | None,
    *,
    scale: float,
    sms: int,
    size: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of query, key and value.

    Args:
        query, key, value: [B, T, H, 64] and twice [B, S, H, 64].
        grad: The output's gradient, as the query.
        start_s, start_dp: [B, H, T], float32: -lse / scale and -delta.
        chunks: [2], int32: the two chunks of the longer sequence that the queries are, or None.
        scale: Of the logits.
        sms: Multiprocessors.
        size: CTAs that share a head.
    """
    call = Call(
        batch=query.shape[0],
        heads=query.shape[2],
        blocks=query.shape[1] // BLOCK,
        key_blocks=key.shape[1] // BLOCK,
        dtype=query.dtype,
        scale=scale,
        sms=sms,
        size=size,
        has_chunks=chunks is not None,
    )
    scratch = call.scratch()
    names = ["q", "k", "v", "do", "start_s", "start_dp", *["chunks"] * call.has_chunks]
    names += ["dq", "dk", "dv", "sums"]

    def kernel(*refs):
        in_memory, on_chip = refs[: len(names)], refs[len(names) :]
        cta = Cta(
            call,
            SimpleNamespace(**dict(zip(names, in_memory, strict=True))),
            SimpleNamespace(**dict(zip(scratch, on_chip, strict=True))),
        )
        group = lax.axis_index("warpgroup")
        cta.start()
        pl.when(group == 3)(Loads(cta).run)
        pl.when(group == 2)(QueryGradient(cta).run)
        pl.when(group < 2)(KeyValueGradient(cta, group).run)

    operands = [query, key, value, grad, start_s, start_dp, *([] if chunks is None else [chunks])]
    sums = (call.buffers * call.groups, call.blocks, 2, *SUMS_SHAPE)
    dq, dk, dv, _ = plgpu.kernel(
        kernel,
        out_type=[
            *[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)],
            jax.ShapeDtypeStruct(sums, jnp.float32),
        ],
        scratch_types=list(scratch.values()),
        # the members of a group next to each other: they start together
        grid=(call.groups * size,),
        grid_names=("cta",),
        num_threads=4,
        thread_name="warpgroup",
        compiler_params=COMPILER_PARAMS,
        kernel_name="attention_gradient",
    )(*operands)
    return dq, dk, dv


class Cta:
    """A CTA's walk over blocks of keys and of queries, which its four warpgroups make alike.

    Attributes:
        memory: The arrays in global memory.
        chip: Shared memory and barriers.
    """

    group: Any  # the group's number
    member: Any  # this CTA's number in it
    visits: Any  # counters of the visits to each block of queries, where CTAs share heads
    queries: Chunks

    def __init__(self, call: Call, memory: SimpleNamespace, chip: SimpleNamespace):
        self.call, self.memory, self.chip = call, memory, chip
        self.number = lax.axis_index("cta")

    def start(self) -> None:
        """Makes what all warpgroups use."""
        call = self.call
        self.group, self.member, self.visits = self.number, 0, None
        if call.shared:
            self.group = lax.div(self.number, call.size)
            self.member = lax.rem(self.number, call.size)
            counters = (call.groups * call.buffers * call.blocks,)
            self.visits = pl.get_global(plgpu.SemaphoreType.REGULAR(counters))
        self.queries = Chunks(self.memory.chunks if call.has_chunks else None, call.blocks)

    def for_each_column(self, column: Callable[[Column, Any, Any], Any]) -> None:
        """Calls column(Column, number, step) -> step for each block of keys, counting columns and
        steps.
        """
        call = self.call

        def head(index, counts):
            item = self.group + index * call.groups
            b, h = lax.div(item, call.heads), lax.rem(item, call.heads)

            def one(round_, counts):
                number, step = counts
                c = Column(index, b, h, round_, call.group.column(round_, self.member))
                return number + 1, column(c, number, step)

            return lax.fori_loop(0, call.group.rounds_of(self.member), one, counts)

        heads = lax.div(call.items - self.group + call.groups - 1, call.groups)
        lax.fori_loop(0, heads, head, (jnp.int32(0), jnp.int32(0)))

    def for_each_step(self, j, number, step, body: Callable[[Any, Any, Any], None]) -> Any:
        """Calls body(i, slot, step) for the blocks of queries i that see the keys j; returns the
        step after them.
        """
        first = self.queries.first_to_see(j)

        def one(n, step):
            i = first + n
            # up in one column, down in the next: what the last column used last, and the L2 cache
            # still has, comes first
            if not self.call.shared:
                i = jnp.where(lax.rem(number, 2) == 0, i, self.call.blocks - 1 - n)
            body(i, lax.rem(step, RING), step)
            return step + 1

        return lax.fori_loop(0, self.call.blocks - first, one, step)


def rows_of(block, half):
    """The 64 rows that are one half of a block of 128."""
    return pl.ds(block * BLOCK + half * ROWS, ROWS)


def halves(block):
    """Both halves of a block and their rows."""
    return [(p, rows_of(block, p)) for p in range(2)]


class Loads:
    """Warpgroup 3: issues the TMA copies of all tiles."""

    def __init__(self, cta: Cta):
        self.cta, self.memory, self.chip = cta, cta.memory, cta.chip

    def run(self) -> None:
        plgpu.set_max_registers(REGISTERS[2], action="decrease")
        self.cta.for_each_column(self._column)

    def _column(self, c: Column, number, step):
        memory, chip = self.memory, self.chip
        slot = lax.rem(number, RING)
        pl.when(number >= RING)(lambda: plgpu.barrier_wait(chip.k_empty.at[slot]))
        for p, rows in halves(c.j):
            keys = memory.k.at[c.b, rows, c.h]
            plgpu.copy_gmem_to_smem(keys, chip.k.at[slot, p], chip.k_full.at[slot])
        pl.when(number >= 1)(lambda: plgpu.barrier_wait(chip.v_empty))
        for p, rows in halves(c.j):
            values = memory.v.at[c.b, rows, c.h]
            plgpu.copy_gmem_to_smem(values, chip.v.at[p], chip.v_full)
        return self.cta.for_each_step(c.j, number, step, functools.partial(self._queries, c))

    def _queries(self, c: Column, i, slot, step) -> None:
        memory, chip, full = self.memory, self.chip, self.chip.q_full.at[slot]
        pl.when(step >= RING)(lambda: plgpu.barrier_wait(chip.q_empty.at[slot]))
        block = pl.ds(i * BLOCK, BLOCK)
        plgpu.copy_gmem_to_smem(memory.start_s.at[c.b, c.h, block], chip.start_s.at[slot], full)
        plgpu.copy_gmem_to_smem(memory.start_dp.at[c.b, c.h, block], chip.start_dp.at[slot], full)
        for p, rows in halves(i):
            plgpu.copy_gmem_to_smem(memory.q.at[c.b, rows, c.h], chip.q.at[slot, p], full)
            plgpu.copy_gmem_to_smem(memory.do.at[c.b, rows, c.h], chip.do.at[slot, p], full)


class QueryGradient:
    """Warpgroup 2: dQ = dS K, added up in global memory."""

    def __init__(self, cta: Cta):
        self.cta, self.call, self.memory, self.chip = cta, cta.call, cta.memory, cta.chip
        self.sums, self.dq = cta.chip.sums_or_dq

    def run(self) -> None:
        plgpu.set_max_registers(REGISTERS[1], action="decrease")
        self.cta.for_each_column(self._column)
        plgpu.wait_smem_to_gmem(0)

    def _column(self, c: Column, number, step):
        cta, call, chip = self.cta, self.call, self.chip
        k_slot = lax.rem(number, RING)
        plgpu.barrier_wait(chip.k_full.at[k_slot])
        first_block = cta.queries.first_to_see(c.j)
        if call.shared:
            buffer = call.buffers * cta.group + lax.rem(c.index, call.buffers)
            counts = cta.visits.at[pl.ds(buffer * call.blocks, call.blocks)]
            add = functools.partial(self._add_shared, c, k_slot, buffer, counts, first_block)
        else:
            plgpu.wait_smem_to_gmem(0)  # what earlier columns stored and added has arrived
            counts, add = None, functools.partial(self._add_alone, c, k_slot)
        step = cta.for_each_step(c.j, number, step, add)
        plgpu.barrier_arrive(chip.k_empty.at[k_slot])
        if call.shared:
            self._publish(counts, call.blocks - 1, first_block < call.blocks)
        return step

    @staticmethod
    def _publish(counts, i, visited) -> None:
        """Waits until all that this member added is in memory; where it visited block i, the next
        one may.
        """
        plgpu.wait_smem_to_gmem(0)
        pl.when(visited)(lambda: plgpu.semaphore_signal(counts.at[i], memory_scope="gpu"))

    def _add_shared(self, c: Column, k_slot, buffer, counts, first_block, i, slot, _) -> None:
        """A step where several members visit block i."""
        cta, call, chip = self.cta, self.call, self.chip
        position = cta.queries.position(i)
        earlier: Any = call.group.visits_before(c.round, cta.member, position)
        last = earlier == position
        has_sums = last & (position > 0)
        # visits, those of earlier heads included
        done = lax.div(c.index, call.buffers) * (position + 1) + earlier
        # mostly the visits before are done by now; where not, this member says that the block
        # before is done, and waits
        ready = votes.reached(counts.at[i], done)
        plgpu.barrier_wait(chip.ds_full.at[slot])
        self._publish(counts, i - 1, i > first_block)

        @pl.when(~ready)
        def wait():
            plgpu.semaphore_wait(counts.at[i], done, decrement=False, memory_scope="gpu")

        fences.fence_global_memory()
        pl.when(has_sums)(lambda: self._fetch(buffer, i))
        pl.when(has_sums)(lambda: plgpu.barrier_wait(chip.sums_full))
        self._halves(c, k_slot, buffer, i, slot, position, earlier, last)

    def _add_alone(self, c: Column, k_slot, i, slot, _) -> None:
        """A step where this CTA alone visits block i."""
        chip, j, buffer = self.chip, c.j, self.cta.number
        position = self.cta.queries.position(i)
        last = j == 0
        has_sums = last & (position > 0)

        @pl.when(has_sums)
        def fetch_early():
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            self._fetch(buffer, i)

        plgpu.barrier_wait(chip.ds_full.at[slot])
        pl.when(has_sums)(lambda: plgpu.barrier_wait(chip.sums_full))
        # TMA has read what is now overwritten; the other steps waited before
        pl.when((j > 0) | (position == 0))(lambda: plgpu.wait_smem_to_gmem(0, wait_read_only=True))
        self._halves(c, k_slot, buffer, i, slot, position, None, last)

    def _fetch(self, buffer, i) -> None:
        """Requests the sums of block i."""
        for p in range(2):
            sums = self.memory.sums.at[buffer, i, p]
            plgpu.copy_gmem_to_smem(sums, self.sums.at[p], self.chip.sums_full)

    def _halves(self, c: Column, k_slot, buffer, i, slot, position, earlier, last) -> None:
        """dQ of both halves of block i: added to the sums, or together with them written.

        earlier: how many visits to the block were before, where several members make them. last:
        whether this is the last one.
        """
        chip, j, shared = self.chip, c.j, self.call.shared

        def half(p, _):
            def product(acc):
                for r in range(2):
                    ds = chip.ds.at[slot, p, r]
                    plgpu.wgmma(acc, ds.transpose((1, 0)), chip.k.at[k_slot, r])
                return acc[...]

            dq = pl.run_scoped(product, PRODUCT)

            @pl.when(~last if shared else j > 0)
            def add_to_sums():
                source, target = self.sums.at[p], self.memory.sums.at[buffer, i, p]
                register_order.store(source, dq)
                plgpu.commit_smem()
                first, later = (
                    (earlier == 0, earlier > 0) if shared else (position == j, position > j)
                )
                pl.when(first)(lambda: plgpu.copy_smem_to_gmem(source, target))
                pl.when(later)(lambda: plgpu.copy_smem_to_gmem(source, target, reduction_op="add"))

            @pl.when(last)
            def write():
                total = lax.cond(
                    position > 0, lambda: dq + register_order.load(self.sums.at[p]), lambda: dq
                )
                plgpu.commit_smem()  # all have read what is now overwritten
                self.dq[p] = (total * self.call.scale).astype(self.call.dtype)
                plgpu.commit_smem()
                target = self.memory.dq.at[c.b, rows_of(i, p), c.h]
                plgpu.copy_smem_to_gmem(self.dq.at[p], target)

        lax.fori_loop(0, 2, half, None)
        plgpu.barrier_arrive(chip.ds_empty.at[slot])


class KeyValueGradient:
    """Warpgroups 0 and 1: dK and dV of 64 keys each, and dS."""

    def __init__(self, cta: Cta, warpgroup):
        self.cta, self.call, self.memory, self.chip = cta, cta.call, cta.memory, cta.chip
        self.warpgroup = warpgroup
        self.exponent = cta.call.scale * math.log2(math.e)

    def run(self) -> None:
        plgpu.set_max_registers(REGISTERS[0], action="increase")
        self.out = self.chip.out.at[self.warpgroup]
        self.cta.for_each_column(self._column)
        plgpu.wait_smem_to_gmem(0)

    def _column(self, c: Column, number, step):
        chip = self.chip
        k_slot = lax.rem(number, RING)
        plgpu.barrier_wait(chip.k_full.at[k_slot])
        keys = plgpu.load(chip.k.at[k_slot, self.warpgroup], layout=WGMMA)
        fences.fence_shared_memory()
        plgpu.barrier_arrive(chip.k_empty.at[k_slot])
        plgpu.barrier_wait(chip.v_full)
        values = plgpu.load(chip.v.at[self.warpgroup], layout=WGMMA)
        fences.fence_shared_memory()
        plgpu.barrier_arrive(chip.v_empty)

        def accumulate(dk, dv):
            def both_halves(i, slot, step):
                plgpu.barrier_wait(chip.q_full.at[slot])
                on_diagonal = self.cta.queries.position(i), c.j
                for p in range(2):
                    half = functools.partial(
                        self._half, dk, dv, keys, values, slot, p, step, on_diagonal
                    )
                    pl.run_scoped(half, PRODUCT, PRODUCT)
                fences.fence_shared_memory()
                plgpu.barrier_arrive(chip.ds_full.at[slot])
                plgpu.barrier_arrive(chip.q_empty.at[slot])

            step_after = self.cta.for_each_step(c.j, number, step, both_halves)
            return dk[...], dv[...], step_after

        dk, dv, step = pl.run_scoped(accumulate, PRODUCT, PRODUCT)
        for x, ref in ((dk * self.call.scale, self.memory.dk), (dv, self.memory.dv)):
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            self.out[...] = x.astype(self.call.dtype)
            plgpu.commit_smem()
            target = ref.at[c.b, rows_of(c.j, self.warpgroup), c.h]
            plgpu.copy_smem_to_gmem(self.out, target)
        return step

    def _half(self, dk, dv, keys, values, slot, p, step, on_diagonal, s, dp) -> None:
        """64 queries: s and dp are the accumulators of S^T and dP^T."""
        chip, dtype = self.chip, self.call.dtype
        q, do, rows = chip.q.at[slot, p], chip.do.at[slot, p], pl.ds(p * ROWS, ROWS)
        s[...] = _to_columns(plgpu.load(chip.start_s.at[slot, rows], layout=COL))
        dp[...] = _to_columns(plgpu.load(chip.start_dp.at[slot, rows], layout=COL))
        plgpu.wgmma(s, keys, q.transpose((1, 0)))
        plgpu.wgmma(dp, values, do.transpose((1, 0)))
        weights = jnp.exp2(plgpu.wgmma_accumulator_load(s, wait_n=1) * self.exponent)
        if p == 0:
            pl.when(step >= RING)(lambda: plgpu.barrier_wait(chip.ds_empty.at[slot]))

        def mask(x):
            key, query = (
                plgpu.broadcasted_iota(jnp.int32, x.shape, d, layout=WGMMA) for d in (0, 1)
            )
            return jnp.where(key + ROWS * self.warpgroup <= query + ROWS * p, x, 0.0)

        position, j = on_diagonal
        weights = lax.cond(position == j, mask, lambda x: x, weights)
        plgpu.wgmma(dv, weights.astype(dtype), do)
        ds = (weights * plgpu.wgmma_accumulator_load(dp, wait_n=1)).astype(dtype)
        plgpu.wgmma(dk, ds, q)
        chip.ds[slot, p, self.warpgroup] = ds
        # products that end here leave their operands' registers to the next half
        plgpu.wgmma_wait(0)


def _to_columns(x):
    return lax.broadcast_in_dim(x, (ROWS, ROWS), [1])
