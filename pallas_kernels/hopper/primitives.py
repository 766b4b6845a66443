"""What the Mosaic GPU kernels need below Pallas's own operations: loads, stores and warp-wide sums
of their own shapes.

Everywhere here a scalar may differ from warp to warp, where its name in a docstring says so: Mosaic
takes scalars for equal in all threads, but does nothing that needs them to be.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, memref, nvvm, vector

ROWS, WARP_ROWS = 64, 16  # of one wgmma, and each of its four warps' share
WGMMA, ROW, COL = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)
SCALAR = plgpu.Layout.WG_SPLAT(())
# Partial results [parts, columns], 4 columns a lane. Of a whole warpgroup:
PARTS = plgpu.Layout.TILED(
    plgpu.Tiling(((32, 16), (8, 16), (4,))), warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1
)
# Of a single warp: the warps hold different numbers, but Mosaic, which takes them for copies,
# reduces inside the warp.
WARP_PARTS = plgpu.Layout.TILED(
    plgpu.Tiling(((8, 16), (4,))),
    warp_dims=(plgpu.Replicated(4),),
    lane_dims=(-3, -2),
    vector_dim=-1,
)


def load_heads(ref, column, tokens):
    """A box [tokens, columns] in shared memory as an array [64 rows, tokens]: each warp's 16 rows
    are 16 of the box's columns, from `column` on, which may differ from warp to warp."""
    result = plgpu.ShapeDtypeStruct((ROWS, tokens), ref.dtype, layout=WGMMA)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), SCALAR), return_type=result)
    def load(_, ref, column):
        ref_type = ir.MemRefType(ref.type)
        pitch = ref_type.shape[1]
        i32 = ir.IntegerType.get_signless(32)
        const = lambda x: arith.constant(i32, x)
        lane = arith.remui(utils.thread_idx(), const(32))
        # ldmatrix.x4.trans: lanes 8 i .. 8 i + 7 hold the addresses of matrix i's rows. A row is 8
        # heads of one token. Matrices 0..3 are (tokens 0-7, heads 0-7), (tokens 0-7, heads 8-15),
        # (tokens 8-15, heads 0-7), ...
        token = arith.addi(
            arith.remui(lane, const(8)), arith.muli(arith.divui(lane, const(16)), const(8))
        )
        head = arith.muli(arith.remui(arith.divui(lane, const(8)), const(2)), const(8))
        offset = arith.addi(
            arith.muli(token, const(pitch)), arith.addi(head, column.registers.item())
        )
        base = utils.getelementptr(utils.memref_ptr(ref), [offset], ref_type.element_type)
        register = ir.VectorType.get((2,), ref_type.element_type)
        layout = mgpu.WGMMA_LAYOUT
        registers = np.empty(layout.registers_shape((ROWS, tokens)), dtype=object)
        flat = registers.reshape(tokens // 8, 2)
        for j in range(0, tokens // 8, 2):
            loaded = nvvm.ldmatrix(
                utils.getelementptr(base, [j * 8 * pitch], ref_type.element_type),
                layout=nvvm.MMALayout.col,
                num=4,
                shape=ir.Attribute.parse("#nvvm.ld_st_matrix_shape<m=8, n=8>"),
                elt_type=nvvm.LdStMatrixEltType.B16,
            )
            for i in range(4):
                flat[j + i // 2, i % 2] = utils.bitcast(
                    llvm.extractvalue(i32, loaded, [i]), register
                )
        return mgpu.FragmentedArray(
            _registers=flat.reshape(registers.shape), _layout=layout, _is_signed=None
        )

    return load(ref, column)


def gather(ref, shape, layout, scalars, index, vector_axis=-1):
    """An array whose element at idx is ref[index(*scalars, *idx)]; index takes and returns
    index-typed values.
    """

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), *[SCALAR] * len(scalars)),
        return_type=plgpu.ShapeDtypeStruct(shape, ref.dtype, layout=layout),
    )
    def load(_, ref, *scalars):
        scalars = [arith.index_castui(ir.IndexType.get(), x.registers.item()) for x in scalars]
        mgpu_layout = layout.to_mgpu()
        element = ir.MemRefType(ref.type).element_type
        register_type = ir.VectorType.get((mgpu_layout.vector_length,), element)
        registers = np.empty(mgpu_layout.registers_shape(shape), dtype=object)
        for idx, i in zip(mgpu_layout.thread_idxs(shape), np.ndindex(registers.shape)):
            values = []
            for k in range(mgpu_layout.vector_length):
                at = list(idx)
                at[vector_axis] = arith.addi(at[vector_axis], arith.constant(ir.IndexType.get(), k))
                values.append(memref.load(ref, index(*scalars, *at)))
            registers[i] = vector.from_elements(register_type, values)
        return mgpu.FragmentedArray(_registers=registers, _layout=mgpu_layout, _is_signed=None)

    return load(ref, *scalars)


def gather_rows(ref, shape, layout, start, last):
    """ref[min(start + i, last)] for i in range(shape[0]): rows past the last one repeat it."""

    result = plgpu.ShapeDtypeStruct(shape, ref.dtype, layout=layout)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), SCALAR, SCALAR), return_type=result)
    def load(_, ref, start, last):
        as_index = lambda x: arith.index_cast(ir.IndexType.get(), x.registers.item())
        start, last = as_index(start), as_index(last)
        mgpu_layout = layout.to_mgpu()
        element = ir.VectorType.get(
            (mgpu_layout.vector_length,), ir.MemRefType(ref.type).element_type
        )
        registers = np.empty(mgpu_layout.registers_shape(shape), dtype=object)
        for (row, *column), i in zip(mgpu_layout.thread_idxs(shape), np.ndindex(registers.shape)):
            registers[i] = vector.load(
                element, ref, [arith.minsi(arith.addi(row, start), last), *column]
            )
        return mgpu.FragmentedArray(_registers=registers, _layout=mgpu_layout, _is_signed=None)

    return load(ref, start, last)


def fence():
    """What this thread did in shared memory comes before what wgmma and TMA do behind the barrier
    where it now arrives.
    """

    @plgpu.inline_mgpu()
    def run(_):
        utils.inline_ptx("fence.proxy.async.shared::cta;", has_side_effects=True)

    run()


def fence_memory():
    """What other thread blocks did in the GPU's memory, before a semaphore that this thread has
    seen, comes before what TMA does there for this thread from here on."""

    @plgpu.inline_mgpu()
    def run(_):
        utils.inline_ptx("fence.proxy.async.global;", has_side_effects=True)

    run()


BY_THREAD = 4  # numbers that a thread stores at a time: 16 bytes


def by_thread_shape(shape):
    """Of a buffer that holds a float32 array of that shape in the order of threads and their
    registers; 256 is TMA's widest.
    """
    return (math.prod(shape) // 256, 256)


def _own_place(ref, k):
    """Thread t's k-th four numbers in a buffer of by_thread_shape: side by side with those of
    threads t - 1 and t + 1.
    """
    width = ir.MemRefType(ref.type).shape[1]
    const = lambda x: arith.constant(ir.IntegerType.get_signless(32), x)
    thread = arith.remui(utils.thread_idx(), const(128))
    row = arith.addi(
        arith.divui(thread, const(width // BY_THREAD)), const(k * 128 * BY_THREAD // width)
    )
    column = arith.muli(arith.remui(thread, const(width // BY_THREAD)), const(BY_THREAD))
    return [arith.index_castui(ir.IndexType.get(), x) for x in (row, column)]


def store_by_thread(ref, value):
    """ref = value, float32 in WGMMA layout, in the order of threads and their registers: without
    bank conflicts.
    """

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), WGMMA))
    def store(_, ref, value):
        four = ir.VectorType.get((BY_THREAD,), ir.F32Type.get())
        numbers = [vector.extract(r, [], [i]) for r in value.registers.flat for i in range(2)]
        for k in range(len(numbers) // BY_THREAD):
            part = numbers[k * BY_THREAD : (k + 1) * BY_THREAD]
            vector.store(vector.from_elements(four, part), ref, _own_place(ref, k))

    store(ref, value)


def load_by_thread(ref, shape=(ROWS, 64)):
    """What store_by_thread stored."""

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(),),
        return_type=plgpu.ShapeDtypeStruct(shape, jnp.float32, layout=WGMMA),
    )
    def load(_, ref):
        two, four = (ir.VectorType.get((n,), ir.F32Type.get()) for n in (2, BY_THREAD))
        registers = np.empty(mgpu.WGMMA_LAYOUT.registers_shape(shape), dtype=object)
        for k in range(registers.size // 2):
            read = vector.load(four, ref, _own_place(ref, k))
            numbers = [vector.extract(read, [], [i]) for i in range(BY_THREAD)]
            registers.flat[2 * k : 2 * k + 2] = [
                vector.from_elements(two, numbers[i : i + 2]) for i in (0, 2)
            ]
        return mgpu.FragmentedArray(
            _registers=registers, _layout=mgpu.WGMMA_LAYOUT, _is_signed=None
        )

    return load(ref)


COLUMNS = 8  # that come together where columns are added thread by thread: a thread has two of them


def add_columns(value, total=None):
    """The sums over every COLUMNS-th column of a float32 array [64, n] in WGMMA layout, added to a
    total [64, COLUMNS].
    """
    arguments = (value,) if total is None else (value, total)
    shape = (value.shape[0], COLUMNS)

    @plgpu.inline_mgpu(
        arg_types=(WGMMA,) * len(arguments),
        return_type=plgpu.ShapeDtypeStruct(shape, value.dtype, layout=WGMMA),
    )
    def add(_, value, *total):
        by_column = value.registers.reshape(-1, 2)  # of blocks of columns, then rows r and r + 8
        parts = [*by_column, *(x.registers.reshape(2) for x in total)]
        sums = [functools.reduce(arith.addf, column) for column in zip(*parts, strict=True)]
        registers = np.array(sums, dtype=object).reshape(mgpu.WGMMA_LAYOUT.registers_shape(shape))
        return mgpu.FragmentedArray(
            _registers=registers, _layout=mgpu.WGMMA_LAYOUT, _is_signed=None
        )

    return add(*arguments)


def below_diagonal(value, fill):
    """A float32 array [64, 64] in WGMMA layout, with `fill` in place of what lies above its
    diagonal.
    """

    @plgpu.inline_mgpu(
        arg_types=(WGMMA,),
        return_type=plgpu.ShapeDtypeStruct(value.shape, value.dtype, layout=WGMMA),
    )
    def mask(_, value):
        i32, element = (
            ir.IntegerType.get_signless(32),
            ir.VectorType(value.registers.flat[0].type).element_type,
        )
        const = lambda x: arith.constant(i32, x)
        thread = arith.remui(utils.thread_idx(), const(128))
        lane, warp = arith.remui(thread, const(32)), arith.divui(thread, const(32))
        row = arith.addi(arith.muli(warp, const(WARP_ROWS)), arith.divui(lane, const(4)))
        ahead = arith.subi(row, arith.muli(arith.remui(lane, const(4)), const(2)))
        # opaque, so that 64 comparisons are not made in advance and kept
        ahead = utils.inline_ptx("mov.b32 $0, $1;", ahead, result_types=i32, has_side_effects=True)
        filled = arith.constant(element, fill)
        registers = np.empty(value.registers.shape, dtype=object)
        for at, (block, half) in zip(np.ndindex(registers.shape), np.ndindex(8, 2), strict=True):
            pair = []
            for k in range(2):
                seen = arith.cmpi(arith.CmpIPredicate.sge, ahead, const(8 * block + k - 8 * half))
                pair.append(
                    arith.select(seen, vector.extract(value.registers[at], [], [k]), filled)
                )
            registers[at] = vector.from_elements(value.registers[at].type, pair)
        return mgpu.FragmentedArray(_registers=registers, _layout=value.layout, _is_signed=None)

    return mask(value)


def any_above(values, limit):
    """Whether one of 64 float32 numbers, one or more a thread, is `limit` or above: the same in the
    whole warpgroup.
    """

    @plgpu.inline_mgpu(
        arg_types=(ROW,), return_type=plgpu.ShapeDtypeStruct((), jnp.bool_, layout=SCALAR)
    )
    def run(_, values):
        i32 = ir.IntegerType.get_signless(32)
        numbers = [
            vector.extract(r, [], [k])
            for r in values.registers.flat
            for k in range(ir.VectorType(r.type).shape[0])
        ]
        bound = arith.constant(numbers[0].type, limit)
        above = [arith.cmpf(arith.CmpFPredicate.OGE, x, bound) for x in numbers]
        return _vote(
            "or", "setp.ne.u32 p, $1, 0;", arith.extui(i32, functools.reduce(arith.ori, above))
        )

    return run(values)


def reached(count, value):
    """Whether a semaphore is at `value` or above, at one look: the same in the whole warpgroup."""

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), SCALAR),
        return_type=plgpu.ShapeDtypeStruct((), jnp.bool_, layout=SCALAR),
    )
    def run(_, count, value):
        i32 = ir.IntegerType.get_signless(32)
        look = "ld.acquire.gpu.global.u32 $0, [$1];"
        seen = utils.inline_ptx(
            look, utils.memref_ptr(count), result_types=i32, has_side_effects=True
        )
        return _vote("and", "setp.ge.s32 p, $1, $2;", seen, value.registers.item())

    return run(count, value)


def _vote(kind, set_p, *operands):
    """What the warpgroup's threads find together ("and", "or"), each by an instruction that sets p
    from its operands $1, ...
    """
    i1, i32 = [ir.IntegerType.get_signless(n) for n in (1, 32)]
    barrier = utils.warpgroup_barrier_idx(sync=False)
    meet = (
        f"barrier.cta.red.{kind}.pred.aligned q, ${len(operands) + 1}, 128, p; selp.u32 $0, "
        "1, 0, q;"
    )
    ptx = f"{{ .reg .pred p, q; {set_p} {meet} }}"
    found = utils.inline_ptx(
        ptx, *operands, barrier, result_types=i32, has_side_effects=True, convergent=True
    )
    return mgpu.FragmentedArray.splat(arith.trunci(i1, found), (), is_signed=False)


def scalar(body):
    """Runs body() -> i32 value in every thread."""

    @plgpu.inline_mgpu(return_type=plgpu.ShapeDtypeStruct((), jnp.int32, layout=SCALAR))
    def run(_):
        return mgpu.FragmentedArray.splat(
            body(lambda x: arith.constant(ir.IntegerType.get_signless(32), x)), (), is_signed=True
        )

    return run()


def lane():
    return scalar(lambda const: arith.remui(utils.thread_idx(), const(32)))


def warp():
    """This warp's number in its warpgroup."""
    return scalar(lambda const: arith.remui(arith.divui(utils.thread_idx(), const(32)), const(4)))


def warp_ptx(x, *steps):
    """Runs PTX steps ($0 = f($1)), one after another, on a 32-bit integer that may differ from lane
    to lane.
    """

    @plgpu.inline_mgpu(
        arg_types=(SCALAR,), return_type=plgpu.ShapeDtypeStruct((), jnp.int32, layout=SCALAR)
    )
    def run(_, x):
        x = x.registers.item()
        for ptx in steps:
            x = utils.inline_ptx(
                ptx, x, result_types=x.type, has_side_effects=True, convergent=True
            )
        return mgpu.FragmentedArray.splat(x, (), is_signed=True)

    return run(x)


def warp_reduce(op, x):
    return warp_ptx(x, f"redux.sync.{op}.s32 $0, $1, 0xffffffff;")


def warp_scan(x):
    """The sum of x over this lane and the lanes before it."""
    step = (
        "{ .reg .pred p; .reg .b32 t; shfl.sync.up.b32 t|p, $1, %d, 0, 0xffffffff; @!p "
        "mov.b32 t, 0; add.s32 $0, $1, t; }"
    )
    return warp_ptx(x, *(step % d for d in (1, 2, 4, 8, 16)))


def constant(x):
    return arith.constant(ir.IndexType.get(), x)


def below(limit, *terms):
    """min(sum of the terms, limit - 1), of index-typed values and Python numbers."""
    terms = [constant(x) if isinstance(x, int) else x for x in terms]
    return arith.minui(functools.reduce(arith.addi, terms), constant(limit - 1))


def in_warp(row):
    """A row's number among its warp's."""
    return arith.remui(row, constant(WARP_ROWS))


def store_rows(ref, value, n, h, layout):
    """ref[n, h + i] = value[i], i a row of a warp, where there is a token n and a head h + i.

    n and h may differ from warp to warp.
    """

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), layout, SCALAR, SCALAR))
    def store(_, ref, value, n, h):
        N, H, *_ = ir.MemRefType(ref.type).shape
        n, h = [arith.index_castui(ir.IndexType.get(), x.registers.item()) for x in (n, h)]
        less = lambda x, limit: arith.cmpi(arith.CmpIPredicate.ult, x, constant(limit))
        by_row = {}  # a thread holds two rows; one branch for each
        for (row, *column), register in zip(
            value.layout.thread_idxs(value.shape), np.ndindex(value.registers.shape)
        ):
            half = register[4] if value.registers.ndim > 5 else register
            by_row.setdefault(half, []).append((row, column, value.registers[register]))
        for entries in by_row.values():
            head = arith.addi(h, in_warp(entries[0][0]))
            with utils.when(arith.andi(less(n, N), less(head, H))):
                for _, column, register in entries:
                    vector.store(register, ref, [n, head, *column])

    store(ref, value, n, h)


def blank_rows(ref, transforms, valid, tokens):
    """Zeroes the rows of ref [tokens, columns] from row `valid` on. (A swizzle moves numbers within
    their row only.)
    """

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(transforms), SCALAR))
    def blank(_, ref, valid):
        ref_type = ir.MemRefType(ref.type)
        i32, index = ir.IntegerType.get_signless(32), ir.IndexType.get()
        const = lambda x: arith.constant(index, x)
        thread = arith.remui(utils.thread_idx(), arith.constant(i32, 128))
        row = arith.remui(thread, arith.constant(i32, tokens))
        part = arith.muli(arith.divui(thread, arith.constant(i32, tokens)), arith.constant(i32, 8))
        row_index, part = arith.index_castui(index, row), arith.index_castui(index, part)
        zeros = utils.c(0.0, ir.VectorType.get((8,), ref_type.element_type))
        step = 8 * 128 // tokens  # the threads of one row cover this many numbers at once
        with utils.when(arith.cmpi(arith.CmpIPredicate.sge, row, valid.registers.item())):
            if transforms:  # [tokens / 8, tiles, 8, width]
                _, tiles, _, width = ref_type.shape
                for tile in range(tiles):
                    for column in range(0, width, step):
                        above, below = (
                            arith.divui(row_index, const(8)),
                            arith.remui(row_index, const(8)),
                        )
                        vector.store(
                            zeros, ref, [above, const(tile), below, arith.addi(part, const(column))]
                        )
            else:
                width = ref_type.shape[1]
                for column in range(0, width, step):
                    at = arith.addi(part, const(column))
                    with utils.when(arith.cmpi(arith.CmpIPredicate.ult, at, const(width))):
                        vector.store(zeros, ref, [row_index, at])

    blank(ref, valid)


# $0, $1 = cos($2), sin($2). The angle is brought between -pi and pi first, by 2 pi in two pieces;
# then the fast cosine's error is 2^-20, where float32's own at a position of 500,000 is 2^-6.
COS_SIN = """{ .reg .f32 k, r;
    mul.rn.f32 k, $2, 0f3E22F983;
    cvt.rni.f32.f32 k, k;
    fma.rn.f32 r, k, 0fC0C90FDB, $2;
    fma.rn.f32 r, k, 0f343BBD2E, r;
    cos.approx.f32 $0, r;
    sin.approx.f32 $1, r; }"""


def rotate(sources, targets, transforms, first, tokens, dim, rotation):
    """RoPE of one rank's keys at positions first, first + 1, ...: sources and targets are chunks
    [tokens, 64] of their `dim` features, each rotation.frequencies' worth of them by itself."""
    half, parts = len(rotation.frequencies), 128 // tokens  # threads of a row
    count = half // 8  # units of 8 features in a half; a thread takes every parts-th

    @plgpu.inline_mgpu(arg_types=(*[plgpu.RefType(transforms)] * 2 * len(sources), SCALAR))
    def turn(_, *arguments):
        *refs, first = arguments
        sources, targets = refs[: len(refs) // 2], refs[len(refs) // 2 :]
        i32, index, f32 = ir.IntegerType.get_signless(32), ir.IndexType.get(), ir.F32Type.get()
        element = ir.MemRefType(sources[0].type).element_type
        narrow, wide = ir.VectorType.get((8,), element), ir.VectorType.get((8,), f32)
        scalar = lambda x: arith.constant(i32, x)
        thread = arith.remui(utils.thread_idx(), scalar(128))
        row, part = arith.remui(thread, scalar(tokens)), arith.divui(thread, scalar(tokens))
        position = arith.sitofp(f32, arith.addi(first.registers.item(), row))
        above, below = [
            arith.index_castui(index, f(row, scalar(8))) for f in (arith.divui, arith.remui)
        ]
        is_part = [arith.cmpi(arith.CmpIPredicate.eq, part, scalar(p)) for p in range(parts)]

        def rounded(x):
            if rotation.dtype == "float32":
                return x
            dtype = ir.VectorType.get((8,), utils.dtype_to_ir_type(jnp.dtype(rotation.dtype)))
            return arith.extf(wide, arith.truncf(dtype, x))

        def at(feature, unit):
            """Where the unit of 8 features lies that is `unit` units behind `feature`: swizzled, as
            wgmma wants it.
            """
            unit = arith.xori(arith.addi(unit, constant(feature % 64 // 8)), below)
            return feature // 64, [above, constant(0), below, arith.muli(unit, constant(8))]

        def turn_unit(j):
            unit = arith.index_castui(index, arith.addi(part, scalar(j * parts)))
            cosines, sines = [], []
            for k in range(8):
                frequency = arith.constant(f32, 0.0)
                for p in range(min(parts, count - j * parts)):
                    value = arith.constant(f32, rotation.frequencies[(j * parts + p) * 8 + k])
                    frequency = arith.select(is_part[p], value, frequency)
                cos, sin = utils.inline_ptx(
                    COS_SIN, arith.mulf(position, frequency), result_types=(f32, f32)
                )
                cosines.append(cos)
                sines.append(sin)
            cos, sin = [rounded(vector.from_elements(wide, x)) for x in (cosines, sines)]
            for start in range(0, dim, 2 * half):
                places = [at(start, unit), at(start + half, unit)]
                x, y = [
                    arith.extf(wide, vector.load(narrow, sources[c], where)) for c, where in places
                ]
                turned_x = arith.addf(arith.mulf(x, cos), arith.mulf(y, sin))
                turned_y = arith.subf(arith.mulf(y, cos), arith.mulf(x, sin))
                for (c, where), value in zip(places, (turned_x, turned_y)):
                    vector.store(arith.truncf(narrow, value), targets[c], where)

        utils.warpgroup_barrier()  # until the last tile's keys have been read
        for j in range(-(-count // parts)):
            if (j + 1) * parts <= count:
                turn_unit(j)
            else:
                with utils.when(
                    arith.cmpi(arith.CmpIPredicate.ult, part, scalar(count - j * parts))
                ):
                    turn_unit(j)

    turn(*sources, *targets, first)


@functools.cache
def multiprocessors() -> int:
    """Of the first GPU; an H200's, where there is none."""
    gpus = [device for device in jax.devices() if device.platform == "gpu"]
    return getattr(gpus[0], "core_count", 132) if gpus else 132
