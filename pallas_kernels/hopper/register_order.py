"""float32 arrays in shared memory in the order of threads and their registers.

A thread stores and loads 16 bytes at a time, next to those of the threads before and after it:
without bank conflicts.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, vector

from pallas_kernels.hopper.inline import inline_mgpu
from pallas_kernels.hopper.layouts import ROWS, WGMMA

VECTOR = 4  # numbers that a thread stores at a time


def buffer_shape(shape):
    """The shape of a buffer for an array of that shape; 256 is the widest that TMA copies."""
    return (math.prod(shape) // 256, 256)


def _vector_index(ref, k):
    """Where a thread's k-th vector lies in a buffer."""
    width = ir.MemRefType(ref.type).shape[1]
    const = lambda x: arith.constant(ir.IntegerType.get_signless(32), x)
    thread = arith.remui(utils.thread_idx(), const(128))
    row = arith.addi(arith.divui(thread, const(width // VECTOR)), const(k * 128 * VECTOR // width))
    column = arith.muli(arith.remui(thread, const(width // VECTOR)), const(VECTOR))
    return [arith.index_castui(ir.IndexType.get(), x) for x in (row, column)]


def store(ref, value):
    """Writes value, float32 in WGMMA layout, to a buffer of buffer_shape."""

    @inline_mgpu(arg_types=(plgpu.RefType(), WGMMA))
    def run(_, ref, value):
        four = ir.VectorType.get((VECTOR,), ir.F32Type.get())
        numbers = [vector.extract(r, [], [i]) for r in value.registers.flat for i in range(2)]
        for k in range(len(numbers) // VECTOR):
            vector_k = numbers[k * VECTOR : (k + 1) * VECTOR]
            vector.store(vector.from_elements(four, vector_k), ref, _vector_index(ref, k))

    run(ref, value)


def load(ref, shape=(ROWS, 64)):
    """Reads what `store` wrote."""

    @inline_mgpu(
        arg_types=(plgpu.RefType(),),
        return_type=plgpu.ShapeDtypeStruct(shape, jnp.float32, layout=WGMMA),
    )
    def run(_, ref):
        two, four = (ir.VectorType.get((n,), ir.F32Type.get()) for n in (2, VECTOR))
        registers = np.empty(mgpu.WGMMA_LAYOUT.registers_shape(shape), dtype=object)
        for k in range(registers.size // 2):
            read = vector.load(four, ref, _vector_index(ref, k))
            numbers = [vector.extract(read, [], [i]) for i in range(VECTOR)]
            registers.flat[2 * k : 2 * k + 2] = [
                vector.from_elements(two, numbers[i : i + 2]) for i in (0, 2)
            ]
        return mgpu.FragmentedArray(
            _registers=registers, _layout=mgpu.WGMMA_LAYOUT, _is_signed=None
        )

    return run(ref)
