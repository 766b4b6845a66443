"""The register layouts of the Mosaic GPU kernels, and the sizes that go with them."""

from jax.experimental.pallas import mosaic_gpu as plgpu

ROWS, WARP_ROWS = 64, 16  # of one wgmma, and of each of its four warps
WGMMA, ROW, COL = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)
SCALAR = plgpu.Layout.WG_SPLAT(())

# Partial results [splits, columns], 4 columns a lane, over a whole warpgroup:
PARTIALS = plgpu.Layout.TILED(
    plgpu.Tiling(((32, 16), (8, 16), (4,))), warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1
)

# Over a single warp. The warps hold different numbers, but Mosaic, which takes them for copies,
# reduces within the warp.
WARP_PARTIALS = plgpu.Layout.TILED(
    plgpu.Tiling(((8, 16), (4,))),
    warp_dims=(plgpu.Replicated(4),),
    lane_dims=(-3, -2),
    vector_dim=-1,
)
