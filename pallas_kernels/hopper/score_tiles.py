"""What attention does with a tile of scores in registers."""

import functools

import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, vector

from pallas_kernels.hopper.inline import inline_mgpu
from pallas_kernels.hopper.layouts import WARP_ROWS, WGMMA

COLUMNS = 8  # of which a thread holds two; it adds every 8th column to them by itself


def add_columns(value, total=None):
    """The sums [64, COLUMNS] over every COLUMNS-th column of a float32 array [64, n] in WGMMA
    layout, added to `total` where that is given. No thread needs another's numbers.
    """
    arguments = (value,) if total is None else (value, total)
    shape = (value.shape[0], COLUMNS)

    @inline_mgpu(
        arg_types=(WGMMA,) * len(arguments),
        return_type=plgpu.ShapeDtypeStruct(shape, value.dtype, layout=WGMMA),
    )
    def add(_, value, *total):
        by_column = value.registers.reshape(-1, 2)  # of blocks of columns, then rows r and r + 8
        terms = [*by_column, *(x.registers.reshape(2) for x in total)]
        sums = [functools.reduce(arith.addf, column) for column in zip(*terms, strict=True)]
        registers = np.array(sums, dtype=object).reshape(mgpu.WGMMA_LAYOUT.registers_shape(shape))
        return mgpu.FragmentedArray(
            _registers=registers, _layout=mgpu.WGMMA_LAYOUT, _is_signed=None
        )

    return add(*arguments)


def mask_above_diagonal(value, fill):
    """A float32 array [64, 64] in WGMMA layout with `fill` above its diagonal."""

    @inline_mgpu(
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
