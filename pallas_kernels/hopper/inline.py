"""GPU code inside of a kernel."""

from typing import Any

from jax.experimental.pallas import mosaic_gpu as plgpu

# Any: its annotation says that the caller passes the lowering context, which it passes by itself.
inline_mgpu: Any = plgpu.inline_mgpu
