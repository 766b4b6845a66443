"""RoPE of keys in shared memory, for caches that store keys unrotated."""

import jax.numpy as jnp
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, vector

from pallas_kernels.hopper.index import constant
from pallas_kernels.hopper.inline import inline_mgpu
from pallas_kernels.hopper.layouts import SCALAR

# $0, $1 = cos($2), sin($2). The angle is first reduced to -pi .. pi, with 2 pi as a sum of two
# numbers; then the fast cosine's error is 2^-20. float32's own error at position 500,000 is 2^-6.
COS_SIN = """{ .reg .f32 k, r;
    mul.rn.f32 k, $2, 0f3E22F983;
    cvt.rni.f32.f32 k, k;
    fma.rn.f32 r, k, 0fC0C90FDB, $2;
    fma.rn.f32 r, k, 0f343BBD2E, r;
    cos.approx.f32 $0, r;
    sin.approx.f32 $1, r; }"""


def rotate(sources, targets, transforms, first, tokens, dim, rotation):
    """Rotates one rank's keys at positions first, first + 1, ... .

    Sources and targets are chunks [tokens, 64] of the keys' `dim` features. Each group of
    2 * len(rotation.frequencies) features is rotated by itself.
    """
    half, threads = len(rotation.frequencies), 128 // tokens  # threads of a row
    count = half // 8  # units of 8 features in a half; a thread takes every threads-th

    @inline_mgpu(arg_types=(*[plgpu.RefType(transforms)] * 2 * len(sources), SCALAR))
    def run(_, *arguments):
        *refs, first = arguments
        sources, targets = refs[: len(refs) // 2], refs[len(refs) // 2 :]
        i32, index, f32 = ir.IntegerType.get_signless(32), ir.IndexType.get(), ir.F32Type.get()
        element = ir.MemRefType(sources[0].type).element_type
        narrow, wide = ir.VectorType.get((8,), element), ir.VectorType.get((8,), f32)
        scalar = lambda x: arith.constant(i32, x)
        thread = arith.remui(utils.thread_idx(), scalar(128))
        row, member = arith.remui(thread, scalar(tokens)), arith.divui(thread, scalar(tokens))
        position = arith.sitofp(f32, arith.addi(first.registers.item(), row))
        above, below = [
            arith.index_castui(index, f(row, scalar(8))) for f in (arith.divui, arith.remui)
        ]
        is_member = [arith.cmpi(arith.CmpIPredicate.eq, member, scalar(p)) for p in range(threads)]

        def rounded(x):
            if rotation.dtype == "float32":
                return x
            dtype = ir.VectorType.get((8,), utils.dtype_to_ir_type(jnp.dtype(rotation.dtype)))
            return arith.extf(wide, arith.truncf(dtype, x))

        def at(feature, unit):
            """The chunk, and the index in it, of the unit of 8 features that is `unit` units after
            `feature`; swizzled, as wgmma reads it.
            """
            unit = arith.xori(arith.addi(unit, constant(feature % 64 // 8)), below)
            return feature // 64, [above, constant(0), below, arith.muli(unit, constant(8))]

        def rotate_unit(j):
            unit = arith.index_castui(index, arith.addi(member, scalar(j * threads)))
            cosines, sines = [], []
            for k in range(8):
                frequency = arith.constant(f32, 0.0)
                for p in range(min(threads, count - j * threads)):
                    value = arith.constant(f32, rotation.frequencies[(j * threads + p) * 8 + k])
                    frequency = arith.select(is_member[p], value, frequency)
                cos, sin = utils.inline_ptx(
                    COS_SIN, arith.mulf(position, frequency), result_types=(f32, f32)
                )
                cosines.append(cos)
                sines.append(sin)
            cos, sin = [rounded(vector.from_elements(wide, x)) for x in (cosines, sines)]
            for start in range(0, dim, 2 * half):
                indices = [at(start, unit), at(start + half, unit)]
                x, y = [
                    arith.extf(wide, vector.load(narrow, sources[c], where)) for c, where in indices
                ]
                rotated_x = arith.addf(arith.mulf(x, cos), arith.mulf(y, sin))
                rotated_y = arith.subf(arith.mulf(y, cos), arith.mulf(x, sin))
                for (c, where), value in zip(indices, (rotated_x, rotated_y)):
                    vector.store(arith.truncf(narrow, value), targets[c], where)

        utils.warpgroup_barrier()  # until the last tile's keys have been read
        for j in range(-(-count // threads)):
            if (j + 1) * threads <= count:
                rotate_unit(j)
            else:
                with utils.when(
                    arith.cmpi(arith.CmpIPredicate.ult, member, scalar(count - j * threads))
                ):
                    rotate_unit(j)

    run(*sources, *targets, first)
