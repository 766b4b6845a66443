"""Questions that a warpgroup's threads answer together."""

import functools

import jax.numpy as jnp
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, vector

from pallas_kernels.hopper.inline import inline_mgpu
from pallas_kernels.hopper.layouts import ROW, SCALAR


def any_above(values, limit):
    """Whether one of 64 float32 numbers, of which a thread holds one or more, is at least `limit`.

    The result is the same in the whole warpgroup.
    """

    @inline_mgpu(arg_types=(ROW,), return_type=plgpu.ShapeDtypeStruct((), jnp.bool_, layout=SCALAR))
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
    """Whether a semaphore is now at least at `value`.

    It is read once; the result is the same in the whole warpgroup.
    """

    @inline_mgpu(
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
    """Combines ("and", "or") what the warpgroup's threads find, each by a PTX instruction that sets
    p from its operands $1, ...
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
