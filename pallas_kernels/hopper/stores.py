"""Stores of some rows of an array only, and of rows shorter than a cache line."""

import numpy as np
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, vector

from pallas_kernels.hopper.index import constant, row_in_warp
from pallas_kernels.hopper.inline import inline_mgpu
from pallas_kernels.hopper.layouts import SCALAR


def store_short_row(ref, index, value):
    """ref[index] = value, where the row in global memory may be shorter than a cache line.

    From JAX 0.12 on, plain stores to global memory must fill whole cache lines of 128 bytes.
    """
    if store := getattr(plgpu, "store", None):
        store(ref.at[index], value, optimized=False)
    else:
        ref[index] = value


def store_rows(ref, value, n, h, layout):
    """ref[n, h + i] = value[i] for each row i of a warp, where token n and head h + i exist.

    n and h may differ from warp to warp.
    """

    @inline_mgpu(arg_types=(plgpu.RefType(), layout, SCALAR, SCALAR))
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
            head = arith.addi(h, row_in_warp(entries[0][0]))
            with utils.when(arith.andi(less(n, N), less(head, H))):
                for _, column, register in entries:
                    vector.store(register, ref, [n, head, *column])

    store(ref, value, n, h)


def zero_rows(ref, transforms, valid, tokens):
    """Writes zeros to the rows of ref [tokens, columns] from row `valid` on.

    (A swizzle moves numbers within their row only.)
    """

    @inline_mgpu(arg_types=(plgpu.RefType(transforms), SCALAR))
    def zero(_, ref, valid):
        ref_type = ir.MemRefType(ref.type)
        i32, index = ir.IntegerType.get_signless(32), ir.IndexType.get()
        const = lambda x: arith.constant(index, x)
        thread = arith.remui(utils.thread_idx(), arith.constant(i32, 128))
        row = arith.remui(thread, arith.constant(i32, tokens))
        unit = arith.muli(arith.divui(thread, arith.constant(i32, tokens)), arith.constant(i32, 8))
        row_index, unit = arith.index_castui(index, row), arith.index_castui(index, unit)
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
                            zeros, ref, [above, const(tile), below, arith.addi(unit, const(column))]
                        )
            else:
                width = ref_type.shape[1]
                for column in range(0, width, step):
                    at = arith.addi(unit, const(column))
                    with utils.when(arith.cmpi(arith.CmpIPredicate.ult, at, const(width))):
                        vector.store(zeros, ref, [row_index, at])

    zero(ref, valid)
