"""The precision that sums, norms and rotations run in."""

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float


def accumulator(*dtypes: DTypeLike) -> jnp.dtype:
    """float32, or float64 where an operand is."""
    return jnp.result_type(jnp.float32, *dtypes)


def at_least_float32(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """x in its accumulator's dtype."""
    return x.astype(accumulator(x.dtype))
