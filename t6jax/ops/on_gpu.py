"""When the kernels of pallas_kernels stand in for XLA."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

from pallas_kernels import triton_launch


def takes_kernels(dtype: DTypeLike, *arrays: Array) -> bool:
    """Whether the Triton kernels run: on an NVIDIA GPU with jax-triton, computing in half
    precision.
    """
    half_precision = dtype in (jnp.bfloat16, jnp.float16)
    on_gpu = jax.default_backend() == "gpu"
    return on_gpu and half_precision and triton_launch.unavailable() is None


def on_hopper() -> bool:
    """Whether the first device is an NVIDIA GPU of compute capability 9.0, as H100 and H200 are."""
    device = jax.devices()[0]
    return device.platform == "gpu" and getattr(device, "compute_capability", None) == "9.0"
