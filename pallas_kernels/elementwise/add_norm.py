"""The residual sum and its RMSNorm, and their gradient, each in one pass over memory (Triton).

`add_norm` reads two arrays and writes two, `add_norm_gradient` reads three and writes one; memory
bandwidth bounds both. They need jax-triton.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from pallas_kernels.batching import row_wise
from pallas_kernels.triton_launch import launch, power_of_2, unavailable

MAX_WIDTH = 16384  # of a row, which a program holds in registers
NUM_WARPS = 4


def unsupported(width: int, dtype: DTypeLike) -> str | None:
    """Why the kernels do not take rows of this width and dtype, or None."""
    if width > MAX_WIDTH:
        return f"rows must have at most {MAX_WIDTH} numbers, not {width}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"the arrays must be bfloat16 or float16, not {jnp.dtype(dtype)}"
    return unavailable()


def add_norm(
    x: Float[Array, "N D"], update: Float[Array, "N D"], epsilon: float
) -> tuple[Float[Array, "N D"], Float[Array, "N D"]]:
    """x + update, and that sum divided by the root of its mean square.

    Args:
        x: bfloat16 or float16.
        update: Of x's dtype.
        epsilon: Added to the mean square.

    Returns:
        The sum, rounded to x's dtype, and its norm, computed in float32 from the rounded sum.

    Raises:
        NotImplementedError: The kernel does not take the arrays; see `unsupported`.
    """
    _check(x)
    return row_wise(lambda *arrays: _launch("add_norm", 2, arrays, epsilon))(x, update)


def add_norm_gradient(
    total: Float[Array, "N D"],
    total_grad: Float[Array, "N D"],
    normed_grad: Float[Array, "N D"],
    epsilon: float,
) -> Float[Array, "N D"]:
    """The gradient of `add_norm` with respect to x, which is also that with respect to update.

    Args:
        total: The sum that `add_norm` returned.
        total_grad: The gradient of that sum.
        normed_grad: The gradient of the norm.
        epsilon: As in `add_norm`.

    Raises:
        NotImplementedError: The kernel does not take the arrays; see `unsupported`.
    """
    _check(total)
    run = row_wise(lambda *arrays: _launch("add_norm_gradient", 1, arrays, epsilon)[0])
    return run(total, total_grad, normed_grad)


def _check(x: Array) -> None:
    if reason := unsupported(x.shape[1], x.dtype):
        raise NotImplementedError(f"add_norm: {reason}")


def _launch(
    name: str, outputs: int, arrays: tuple[Array, ...], epsilon: float
) -> tuple[Array, ...]:
    from pallas_kernels.elementwise import add_norm_kernels

    rows, width = arrays[0].shape
    same = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
    results = launch(
        *arrays,
        kernel=getattr(add_norm_kernels, name),
        out_shape=[same] * outputs,
        grid=(rows,),
        num_warps=NUM_WARPS,
        EPSILON=epsilon,
        WIDTH=width,
        BLOCK=power_of_2(width),
    )
    return tuple(results)
