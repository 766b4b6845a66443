"""When the kernels of pallas_kernels stand in for XLA."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike


def takes_kernels(dtype: DTypeLike, *arrays: Array) -> bool:
    """Whether the Triton kernels run: on an NVIDIA GPU, computing in half precision, with places that int32 counts."""
    half_precision = dtype in (jnp.bfloat16, jnp.float16)
    return jax.default_backend() == "gpu" and half_precision and max(x.size for x in arrays) < 2**31
