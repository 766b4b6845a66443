"""A pair of kernels that do nothing, as a floor for the launches of a decode."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

RING = 96 * 1024  # bytes of shared memory that a block of the first kernel has


def empty_pair(blocks: int, merging: int) -> Callable[[jax.Array], jax.Array]:
    """Two dependent launches, the second one set up while the first runs.

    Args:
        blocks: Thread blocks of the first kernel, with the shared memory of a decode.
        merging: Thread blocks of the second.
    Returns:
        A function of an int32 array [1] that adds 1.
    """

    def first(x, out, _):
        plgpu.griddepcontrol_wait()
        plgpu.griddepcontrol_launch_dependents()

        @pl.when(jax.lax.axis_index("block") == 0)
        def _():
            out[0] = x[0]

    def second(x, out):
        plgpu.griddepcontrol_launch_dependents()
        plgpu.griddepcontrol_wait()

        @pl.when(jax.lax.axis_index("block") == 0)
        def _():
            out[0] = x[0] + 1

    def kernel(body, grid, name, **options):
        return plgpu.kernel(
            body,
            out_type=jax.ShapeDtypeStruct((1,), jnp.int32),
            grid=(grid,),
            grid_names=("block",),
            compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
            kernel_name=name,
            **options,
        )

    @jax.jit
    def pair(x):
        ring = [plgpu.SMEM((RING,), jnp.int8)]
        copied = kernel(first, blocks, "empty_first", scratch_types=ring)(x)
        return kernel(second, merging, "empty_second")(copied)

    return pair
