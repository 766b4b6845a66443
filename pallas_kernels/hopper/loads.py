"""Loads of shapes and addresses that Pallas's own do not have.

A scalar argument may differ from warp to warp where a docstring says so: Mosaic takes scalars to be
equal in all threads, but does nothing that needs them to be.
"""

import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, memref, nvvm, vector

from pallas_kernels.hopper.inline import inline_mgpu
from pallas_kernels.hopper.layouts import ROWS, SCALAR, WGMMA


def load_heads(ref, column, tokens):
    """Loads a box [tokens, columns] of shared memory, transposed, as an array [64, tokens].

    Each warp's 16 rows are 16 of the box's columns, from `column` on, which may differ from warp to
    warp.
    """
    result = plgpu.ShapeDtypeStruct((ROWS, tokens), ref.dtype, layout=WGMMA)

    @inline_mgpu(arg_types=(plgpu.RefType(), SCALAR), return_type=result)
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

    @inline_mgpu(
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

    @inline_mgpu(arg_types=(plgpu.RefType(), SCALAR, SCALAR), return_type=result)
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
