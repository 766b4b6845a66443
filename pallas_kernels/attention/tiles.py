"""The tiles that the attention kernels compute on."""

import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper.layouts import ROWS

BLOCK = 128  # queries, and keys, of a step: the rows of two warpgroups
DIM = 64
TILED = plgpu.TilingTransform((8, DIM)), plgpu.SwizzleTransform(2 * DIM)  # pyright: ignore[reportAbstractUsage] # concrete at run time
PRODUCT = plgpu.ACC((ROWS, DIM), jnp.float32)  # pyright: ignore[reportPrivateImportUsage] # imported there
