"""The tiles that the attention kernels compute on, and how both are compiled."""

import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper.layouts import ROWS

BLOCK = 128  # queries, and keys, of a step: the rows of two warpgroups
DIM = 64
TILED = plgpu.TilingTransform((8, DIM)), plgpu.SwizzleTransform(2 * DIM)  # pyright: ignore[reportAbstractUsage] # concrete at run time
PRODUCT = plgpu.ACC((ROWS, DIM), jnp.float32)  # pyright: ignore[reportPrivateImportUsage] # imported there
# Pallas's own barriers around every store to shared memory are not needed: the rings order the
# stores and, where a warpgroup reuses a buffer of its own, so do commit_smem and wait_smem_to_gmem,
# which are barriers of a warpgroup
COMPILER_PARAMS = plgpu.CompilerParams(
    approx_math=True,
    lowering_semantics=plgpu.LoweringSemantics.Lane,
    unsafe_no_auto_barriers=True,
)
