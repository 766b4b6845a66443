"""The gradient of causal attention over whole sequences for Hopper GPUs, in Pallas Mosaic GPU.

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

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.chunks import Chunks
from pallas_kernels.attention.cta_groups import CtaGroup, best_size, busy
from pallas_kernels.batching import row_wise
from pallas_kernels.hopper import fences, register_order, votes
from pallas_kernels.hopper.layouts import COL, ROWS, WGMMA

BLOCK = 128  # queries, and keys, of a step: the rows of two warpgroups
DIM = 64
RING = 2  # steps that a ring of buffers holds; for keys, columns
REGISTERS = 208, 72, 24  # of a thread: in warpgroups 0 and 1, in 2, in 3
# The share of the multiprocessors' time, below which cuDNN's gradient is as fast. Nearly full, the
# kernel takes 0.6 of cuDNN's time with a head for each; where they share heads, 0.72 at 2,048
# tokens, and more beyond.
MIN_BUSY, MIN_BUSY_SHARED = 2 / 3, 0.8
TILED = plgpu.TilingTransform((8, DIM)), plgpu.SwizzleTransform(2 * DIM)  # pyright: ignore[reportAbstractUsage] # concrete at run time
PRODUCT = plgpu.ACC((ROWS, DIM), jnp.float32)  # pyright: ignore[reportPrivateImportUsage] # imported there


ArrayLike = Array | jax.ShapeDtypeStruct


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


def unsupported(
    query: Float[ArrayLike, "B T H D"],
    key: Float[ArrayLike, "B S G D"],
    value: Float[ArrayLike, "B S G E"],
    chunks: Any = None,
) -> str | None:
    """Why the kernel does not take these arrays, or None. chunks: only whether there are any."""
    (B, T, H, D), S = query.shape, key.shape[1]
    if not key.shape == value.shape == (B, T if chunks is None else S, H, D):
        return "queries, keys and values must have the same shape"
    if D != DIM:
        return f"D must be {DIM}, not {D}"
    if T % BLOCK or not query.size:
        return f"T must be a multiple of {BLOCK}, not {T}"
    if chunks is not None and (T % (2 * BLOCK) or S % T):
        return f"with chunks, T must be a multiple of {2 * BLOCK} and S one of T, not {T} and {S}"
    if (
        query.dtype not in (jnp.bfloat16, jnp.float16)
        or not query.dtype == key.dtype == value.dtype
    ):
        return (
            f"the arrays must be all bfloat16 or all float16, not {query.dtype}, "
            f"{key.dtype} and {value.dtype}"
        )
    return None


def group_size(
    query: Float[ArrayLike, "B T H D"], key: Float[ArrayLike, "B S H D"], sms: int
) -> int:
    """How many CTAs share a head of these arrays, for speed."""
    (B, T, H, _), S = query.shape, key.shape[1]
    return best_size(B * H, T // BLOCK, S // BLOCK, sms)


def pays(query: Float[ArrayLike, "B T H D"], key: Float[ArrayLike, "B S H D"], sms: int) -> bool:
    """Whether the multiprocessors are busy for so much of the time that cuDNN's gradient takes
    longer.
    """
    (B, T, H, _), S = query.shape, key.shape[1]
    size = group_size(query, key, sms)
    return busy(B * H, size, T // BLOCK, S // BLOCK, sms) >= (
        MIN_BUSY if size == 1 else MIN_BUSY_SHARED
    )


def attention_gradient(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S H D"],
    value: Float[Array, "B S H D"],
    out: Float[Array, "B T H D"],
    lse: Float[Array, "B H T"],
    grad: Float[Array, "B T H D"],
    chunks: Int[Array, "2"] | None = None,
    *,
    scale: float,
    sms: int = 132,
    ctas_per_head: int | None = None,
) -> tuple[Float[Array, "B T H D"], Float[Array, "B S H D"], Float[Array, "B S H D"]]:
    """The gradients of query, key and value where out = softmax(scale Q K^T) V under a causal mask
    (eq. 3.2).

    Args:
        query: bfloat16 or float16; T a multiple of 128, D = 64.
        key: Of the query's dtype; S = T without chunks.
        value: As the key.
        out: The output, of the same dtype.
        lse: The log-sum-exps of scale Q K^T, float32.
        grad: The output's gradient, of the same dtype.
        chunks: The numbers of the two chunks, of T/2 of the S tokens each, that the halves of the
            queries are; the earlier one first. S must be a multiple of T, and T of 256.
        scale: Not 0.
        sms: The GPU's multiprocessors.
        ctas_per_head: How many CTAs share a head; default: as many as is fast. It sets the order of
            sums, hence the last bits of the query's gradient.

    Under vmap the mapped axis becomes part of B.

    Raises:
        NotImplementedError: The kernel does not take the arrays; see `unsupported`.
        ValueError: ctas_per_head is more than there are multiprocessors or blocks of keys.
    """
    if reason := unsupported(query, key, value, chunks):
        raise NotImplementedError(f"attention_gradient: {reason}")
    most = min(sms, key.shape[1] // BLOCK)
    if ctas_per_head is not None and not 1 <= ctas_per_head <= most:
        raise ValueError(
            f"attention_gradient: ctas_per_head must be 1 to {most}, no more than sms and blocks "
            f"of keys, not {ctas_per_head}"
        )

    def run(query, key, value, out, lse, grad, *chunks):
        delta = jnp.einsum("bthd,bthd->bht", out, grad, preferred_element_type=jnp.float32)
        size = ctas_per_head or group_size(query, key, sms)
        start_s, start_dp = lse * (-1 / scale), -delta
        numbers = chunks[0] if chunks else None
        return tuple(_kernel(query, key, value, grad, start_s, start_dp, numbers, scale, sms, size))

    shared = () if chunks is None else (chunks,)
    run = row_wise(run, shared=len(shared))
    return run(query, key, value, out, lse, grad, *shared)


def _kernel(query, key, value, grad, start_s, start_dp, chunks, scale, sms, size):
    (B, T, H, _), dtype = query.shape, query.dtype
    blocks, key_blocks, items = T // BLOCK, key.shape[1] // BLOCK, B * H
    operands = [query, key, value, grad, start_s, start_dp, *([] if chunks is None else [chunks])]
    group_of = CtaGroup(size, key_blocks)
    groups = min(sms // size, items)
    shared = size > 1
    # sums of a head may be under way while those of the head before are not yet fetched
    buffers = 2 if shared else 1
    exponent = scale * math.log2(math.e)

    def kernel(*refs):
        q_ref, k_ref, v_ref, do_ref, start_s_ref, start_dp_ref, *chunks_ref = refs[: len(operands)]
        dq_ref, dk_ref, dv_ref, sums_ref, *scratch = refs[len(operands) :]
        q_s, do_s, k_s, v_s, start_s_s, start_dp_s, ds_s, (sums_s, dq_s), out_s, *barriers = scratch
        q_full, q_empty, k_full, k_empty, v_full, v_empty, ds_full, ds_empty, sums_full = barriers
        cta, group = lax.axis_index("cta"), lax.axis_index("warpgroup")
        own_group, member = (lax.div(cta, size), lax.rem(cta, size)) if shared else (cta, 0)
        visits: Any = (
            pl.get_global(plgpu.SemaphoreType.REGULAR((groups * buffers * blocks,)))
            if shared
            else None
        )
        queries = Chunks(chunks_ref[0] if chunks_ref else None, blocks)

        def for_each_column(column):
            """Calls column(Column, number, step) -> step for each block of keys, counting columns
            and steps.
            """

            def head(index, counts):
                item = own_group + index * groups
                b, h = lax.div(item, H), lax.rem(item, H)

                def one(round_, counts):
                    number, step = counts
                    return number + 1, column(
                        Column(index, b, h, round_, group_of.column(round_, member)), number, step
                    )

                return lax.fori_loop(0, group_of.rounds_of(member), one, counts)

            lax.fori_loop(
                0,
                lax.div(items - own_group + groups - 1, groups),
                head,
                (jnp.int32(0), jnp.int32(0)),
            )

        def for_each_step(j, number, step, body):
            """Calls body(i, slot, step) for the blocks of queries i that see the keys j."""
            first = queries.first_to_see(j)

            def one(n, step):
                i = first + n
                # up in one column, down in the next: what the last column used last, and the L2
                # cache still has, comes first
                if not shared:
                    i = jnp.where(lax.rem(number, 2) == 0, i, blocks - 1 - n)
                body(i, lax.rem(step, RING), step)
                return step + 1

            return lax.fori_loop(0, blocks - first, one, step)

        halves = lambda block: [(p, pl.ds(block * BLOCK + p * ROWS, ROWS)) for p in range(2)]

        @pl.when(group == 3)
        def load():
            plgpu.set_max_registers(REGISTERS[2], action="decrease")

            def column(c, number, step):
                b, h, j = c.b, c.h, c.j
                slot = lax.rem(number, RING)
                pl.when(number >= RING)(lambda: plgpu.barrier_wait(k_empty.at[slot]))
                for p, rows in halves(j):
                    plgpu.copy_gmem_to_smem(k_ref.at[b, rows, h], k_s.at[slot, p], k_full.at[slot])
                pl.when(number >= 1)(lambda: plgpu.barrier_wait(v_empty))
                for p, rows in halves(j):
                    plgpu.copy_gmem_to_smem(v_ref.at[b, rows, h], v_s.at[p], v_full)

                def fetch(i, slot, step):
                    pl.when(step >= RING)(lambda: plgpu.barrier_wait(q_empty.at[slot]))
                    whole = pl.ds(i * BLOCK, BLOCK)
                    plgpu.copy_gmem_to_smem(
                        start_s_ref.at[b, h, whole], start_s_s.at[slot], q_full.at[slot]
                    )
                    plgpu.copy_gmem_to_smem(
                        start_dp_ref.at[b, h, whole], start_dp_s.at[slot], q_full.at[slot]
                    )
                    for p, rows in halves(i):
                        plgpu.copy_gmem_to_smem(
                            q_ref.at[b, rows, h], q_s.at[slot, p], q_full.at[slot]
                        )
                        plgpu.copy_gmem_to_smem(
                            do_ref.at[b, rows, h], do_s.at[slot, p], q_full.at[slot]
                        )

                return for_each_step(j, number, step, fetch)

            for_each_column(column)

        @pl.when(group == 2)
        def query_gradient():
            plgpu.set_max_registers(REGISTERS[1], action="decrease")

            def column(c, number, step):
                b, h, j = c.b, c.h, c.j
                k_slot = lax.rem(number, RING)
                plgpu.barrier_wait(k_full.at[k_slot])
                first_block = queries.first_to_see(j)
                buffer = buffers * own_group + lax.rem(c.index, buffers) if shared else cta
                if shared:
                    counts = visits.at[pl.ds(buffer * blocks, blocks)]

                    def publish(i, visited):
                        """Waits until all that this member added is in memory; where it visited
                        block i, the next one may.
                        """
                        plgpu.wait_smem_to_gmem(0)
                        pl.when(visited)(
                            lambda: plgpu.semaphore_signal(counts.at[i], memory_scope="gpu")
                        )

                else:
                    plgpu.wait_smem_to_gmem(0)  # what earlier columns stored and added has arrived

                def add(i, slot, _):
                    sums_of = lambda p: sums_ref.at[buffer, i, p]
                    position = queries.position(i)
                    earlier: Any = (
                        group_of.visits_before(c.round, member, position) if shared else None
                    )
                    last = earlier == position if shared else j == 0
                    has_sums = last & (position > 0)

                    def fetch():
                        for p in range(2):
                            plgpu.copy_gmem_to_smem(sums_of(p), sums_s.at[p], sums_full)

                    if shared:
                        # visits, those of earlier heads included
                        done = lax.div(c.index, buffers) * (position + 1) + earlier
                        # mostly the visits before are done by now; where not, this member says that
                        # the block before is done, and waits
                        ready = votes.reached(counts.at[i], done)
                        plgpu.barrier_wait(ds_full.at[slot])
                        publish(i - 1, i > first_block)
                        wait = lambda: plgpu.semaphore_wait(
                            counts.at[i], done, decrement=False, memory_scope="gpu"
                        )
                        pl.when(~ready)(wait)
                        fences.fence_global_memory()
                        pl.when(has_sums)(fetch)
                        pl.when(has_sums)(lambda: plgpu.barrier_wait(sums_full))
                    else:

                        @pl.when(has_sums)
                        def fetch_early():
                            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                            fetch()

                        plgpu.barrier_wait(ds_full.at[slot])
                        pl.when(has_sums)(lambda: plgpu.barrier_wait(sums_full))
                        # TMA has read what is now overwritten; the other steps waited before
                        pl.when((j > 0) | (position == 0))(
                            lambda: plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                        )

                    def half(p, _):
                        def product(acc):
                            for r in range(2):
                                plgpu.wgmma(
                                    acc, ds_s.at[slot, p, r].transpose((1, 0)), k_s.at[k_slot, r]
                                )
                            return acc[...]

                        dq = pl.run_scoped(product, PRODUCT)

                        @pl.when(~last if shared else j > 0)
                        def add_to_sums():
                            register_order.store(sums_s.at[p], dq)
                            plgpu.commit_smem()
                            first, others = (
                                (earlier == 0, earlier > 0)
                                if shared
                                else (position == j, position > j)
                            )
                            pl.when(first)(
                                lambda: plgpu.copy_smem_to_gmem(sums_s.at[p], sums_of(p))
                            )
                            pl.when(others)(
                                lambda: plgpu.copy_smem_to_gmem(
                                    sums_s.at[p], sums_of(p), reduction_op="add"
                                )
                            )

                        @pl.when(last)
                        def final():
                            total = lax.cond(
                                position > 0,
                                lambda: dq + register_order.load(sums_s.at[p]),
                                lambda: dq,
                            )
                            plgpu.commit_smem()  # all have read what is now overwritten
                            dq_s[p] = (total * scale).astype(dtype)
                            plgpu.commit_smem()
                            plgpu.copy_smem_to_gmem(
                                dq_s.at[p], dq_ref.at[b, pl.ds(i * BLOCK + p * ROWS, ROWS), h]
                            )

                    lax.fori_loop(0, 2, half, None)
                    plgpu.barrier_arrive(ds_empty.at[slot])

                step = for_each_step(j, number, step, add)
                plgpu.barrier_arrive(k_empty.at[k_slot])
                if shared:
                    publish(blocks - 1, first_block < blocks)
                return step

            for_each_column(column)
            plgpu.wait_smem_to_gmem(0)

        @pl.when(group < 2)
        def key_value_gradient():
            plgpu.set_max_registers(REGISTERS[0], action="increase")
            out = out_s.at[group]
            later = lambda x: lax.broadcast_in_dim(x, (ROWS, ROWS), [1])

            def column(c, number, step):
                b, h, j = c.b, c.h, c.j
                k_slot = lax.rem(number, RING)
                plgpu.barrier_wait(k_full.at[k_slot])
                keys = plgpu.load(k_s.at[k_slot, group], layout=WGMMA)
                fences.fence_shared_memory()
                plgpu.barrier_arrive(k_empty.at[k_slot])
                plgpu.barrier_wait(v_full)
                values = plgpu.load(v_s.at[group], layout=WGMMA)
                fences.fence_shared_memory()
                plgpu.barrier_arrive(v_empty)

                def accumulate(dk, dv):
                    def both_halves(i, slot, step):
                        plgpu.barrier_wait(q_full.at[slot])
                        position = queries.position(i)
                        for p in range(2):
                            q, grads, part = (
                                q_s.at[slot, p],
                                do_s.at[slot, p],
                                pl.ds(p * ROWS, ROWS),
                            )

                            def half(s, dp, p=p, q=q, grads=grads, part=part):
                                s[...] = later(plgpu.load(start_s_s.at[slot, part], layout=COL))
                                dp[...] = later(plgpu.load(start_dp_s.at[slot, part], layout=COL))
                                plgpu.wgmma(s, keys, q.transpose((1, 0)))
                                plgpu.wgmma(dp, values, grads.transpose((1, 0)))
                                weights = jnp.exp2(
                                    plgpu.wgmma_accumulator_load(s, wait_n=1) * exponent
                                )
                                if p == 0:
                                    pl.when(step >= RING)(
                                        lambda: plgpu.barrier_wait(ds_empty.at[slot])
                                    )

                                def mask(x):
                                    key, query = (
                                        plgpu.broadcasted_iota(jnp.int32, x.shape, d, layout=WGMMA)
                                        for d in (0, 1)
                                    )
                                    return jnp.where(key + ROWS * group <= query + ROWS * p, x, 0.0)

                                weights = lax.cond(position == j, mask, lambda x: x, weights)
                                plgpu.wgmma(dv, weights.astype(dtype), grads)
                                ds = (weights * plgpu.wgmma_accumulator_load(dp, wait_n=1)).astype(
                                    dtype
                                )
                                plgpu.wgmma(dk, ds, q)
                                ds_s[slot, p, group] = ds
                                # products that end here leave their operands' registers to the next
                                # half
                                plgpu.wgmma_wait(0)

                            pl.run_scoped(half, PRODUCT, PRODUCT)
                        fences.fence_shared_memory()
                        plgpu.barrier_arrive(ds_full.at[slot])
                        plgpu.barrier_arrive(q_empty.at[slot])

                    step_after = for_each_step(j, number, step, both_halves)
                    return dk[...], dv[...], step_after

                dk, dv, step = pl.run_scoped(accumulate, PRODUCT, PRODUCT)
                for x, ref in ((dk * scale, dk_ref), (dv, dv_ref)):
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                    out[...] = x.astype(dtype)
                    plgpu.commit_smem()
                    plgpu.copy_smem_to_gmem(
                        out, ref.at[b, pl.ds(j * BLOCK + group * ROWS, ROWS), h]
                    )
                return step

            for_each_column(column)
            plgpu.wait_smem_to_gmem(0)

    tiles = lambda *shape: plgpu.SMEM((*shape, ROWS, DIM), dtype, transforms=TILED)
    floats = lambda *shape: plgpu.SMEM(shape, jnp.float32)
    ring = lambda arrivals, slots=RING: plgpu.Barrier(num_arrivals=arrivals, num_barriers=slots)
    sums_shape = register_order.buffer_shape((ROWS, DIM))
    dense = [jax.ShapeDtypeStruct(x.shape, dtype) for x in (query, key, value)]
    *grads, _ = plgpu.kernel(
        kernel,
        out_type=[
            *dense,
            jax.ShapeDtypeStruct((buffers * groups, blocks, 2, *sums_shape), jnp.float32),
        ],
        scratch_types=[
            *[tiles(RING, 2)] * 3,  # queries, gradients, keys
            tiles(2),  # values
            *[floats(RING, BLOCK)] * 2,  # where S and dP start
            tiles(RING, 2, 2),  # dS^T by halves of queries, then of keys
            plgpu.RefUnion(
                floats(2, *sums_shape), tiles(2)
            ),  # sums of dQ; dQ, all of it where the sums of half 0 were
            tiles(2),  # dK or dV of either warpgroup
            *[ring(6), ring(2)],  # queries and gradients
            *[ring(2), ring(3)],  # keys, which the warpgroups 0 to 2 release
            *[ring(2, 1), ring(2, 1)],  # values
            *[ring(2), ring(1)],  # dS
            ring(2, 1),  # sums of dQ
        ],
        grid=(groups * size,),  # the members of a group next to each other: they start together
        grid_names=("cta",),
        num_threads=4,
        thread_name="warpgroup",
        # Pallas's own barriers around every store to shared memory are not needed: the rings order
        # the stores and, where a warpgroup reuses a buffer of its own, so do commit_smem and
        # wait_smem_to_gmem, which are barriers of a warpgroup
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            unsafe_no_auto_barriers=True,
        ),
        kernel_name="attention_gradient",
    )(*operands)
    return grads
