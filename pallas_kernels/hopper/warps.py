"""Operations of single warps. Results may differ from warp to warp, or from lane to lane: Mosaic
takes scalars to be equal in all threads, but does nothing that needs them to be.
"""

import jax.numpy as jnp
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith

from pallas_kernels.hopper.inline import inline_mgpu
from pallas_kernels.hopper.layouts import SCALAR


def scalar(body):
    """The int32 scalar that `body` makes in each thread; it is given a function for constants."""

    @inline_mgpu(return_type=plgpu.ShapeDtypeStruct((), jnp.int32, layout=SCALAR))
    def run(_):
        return mgpu.FragmentedArray.splat(
            body(lambda x: arith.constant(ir.IntegerType.get_signless(32), x)), (), is_signed=True
        )

    return run()


def lane():
    """This thread's number in its warp."""
    return scalar(lambda const: arith.remui(utils.thread_idx(), const(32)))


def warp():
    """This warp's number in its warpgroup."""
    return scalar(lambda const: arith.remui(arith.divui(utils.thread_idx(), const(32)), const(4)))


def warp_ptx(x, *steps):
    """Runs PTX steps ($0 = f($1)), one after another, on a 32-bit integer that may differ from lane
    to lane.
    """

    @inline_mgpu(
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
    """The warp's "add", "min" or "max" of x."""
    return warp_ptx(x, f"redux.sync.{op}.s32 $0, $1, 0xffffffff;")


def warp_scan(x):
    """The sum of x over this lane and the lanes before it."""
    step = (
        "{ .reg .pred p; .reg .b32 t; shfl.sync.up.b32 t|p, $1, %d, 0, 0xffffffff; @!p "
        "mov.b32 t, 0; add.s32 $0, $1, t; }"
    )
    return warp_ptx(x, *(step % d for d in (1, 2, 4, 8, 16)))
