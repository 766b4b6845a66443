"""Launches Triton kernels from JAX through jax-triton, which everything here except the Triton
kernels does without.

jax-triton compiles a kernel to PTX while JAX lowers the call, for one compute capability: that of
the GPU of this host. XLA then launches it like any other kernel, inside of CUDA graphs too.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from pallas_kernels.device import compute_capability

if TYPE_CHECKING:
    import triton

INSTALL = "pip install jax-triton==0.3.1 triton==3.6.0"


def unavailable() -> str | None:
    """Why Triton kernels cannot be launched in this environment, or None."""
    try:
        import jax_triton  # noqa: F401
    except ImportError as error:
        why = str(error).split(". ")[0]
        return f"jax-triton cannot be imported ({why}); {INSTALL} next to a CUDA build of JAX"
    return None


def launch(
    *arrays: jax.Array,
    kernel: "triton.JITFunction",
    out_shape: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, ...],
    num_warps: int,
    num_stages: int = 1,
    **constants: Any,
) -> list[jax.Array]:
    """The outputs of a Triton kernel.

    Args:
        *arrays: The kernel's first arguments.
        kernel: Takes pointers to the arrays, then to the outputs.
        out_shape: The outputs' shapes and dtypes.
        grid: Programs along each axis, at most three.
        num_warps: Warps of a program.
        num_stages: Stages that Triton pipelines loops into.
        **constants: The kernel's compile-time constants.

    Raises:
        NotImplementedError: jax-triton is missing; the message says how to install it.
    """
    if reason := unavailable():
        raise NotImplementedError(f"{kernel.__name__}: {reason}")
    if 0 in grid:  # nothing to do, which CUDA does not launch
        return [jnp.zeros(x.shape, x.dtype) for x in out_shape]
    import jax_triton

    with jax.named_scope(kernel.__name__):
        return jax_triton.triton_call(
            *arrays,
            kernel=kernel,
            out_shape=list(out_shape),
            grid=grid,  # pyright: ignore[reportArgumentType] # at most three
            name=kernel.__name__,
            num_warps=num_warps,
            num_stages=num_stages,
            compute_capability=compute_capability(),
            **constants,
        )


def power_of_2(x: int) -> int:
    """The least power of 2 that is not below x: the sizes that Triton's blocks have."""
    return 1 << (x - 1).bit_length()
