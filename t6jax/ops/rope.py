"""Rotary position embedding (appendix H.5), in the half-split pairing of the published code."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from t6jax.arguments import number
from t6jax.fields import Range
from t6jax.ops.precision import at_least_float32


@dataclasses.dataclass(frozen=True)
class RoPE:
    """Rotates feature pairs (i, i + D/2) by position * base**(-2i/D).

    Attributes:
      base: the base of the frequencies.
      table_dtype: the cosines and sines are rounded to this dtype; the published code rounds them
        to bfloat16.
    """

    base: float = 10000.0
    table_dtype: str = "float32"

    def __post_init__(self):
        number("RoPE's base", self.base, Range(above=0))

    def frequencies(self, dim: int) -> np.ndarray:
        """base**(-2i/D) for i < D/2, float32."""
        # in NumPy, operation by operation as the published code rounds them: at position t, t times
        # the error counts
        return np.float32(1) / np.float32(self.base) ** (
            np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        )

    def __call__(
        self, x: Float[Array, "#B #T *R D"], positions: Int[Array, "#B #T"]
    ) -> Float[Array, "B T *R D"]:
        """Rotates the last axis of x by each token's position; computed in float32, returned in x's
        dtype.

        An axis B or T of x that is 1 is broadcast over the positions.
        """
        wide = at_least_float32(x)
        cos, sin = (
            table.reshape(*positions.shape, *(1,) * (x.ndim - 3), -1).astype(wide.dtype)
            for table in self.tables(positions, x.shape[-1])
        )
        x1, x2 = jnp.split(wide, 2, axis=-1)
        return jnp.concatenate([x1 * cos + x2 * sin, x2 * cos - x1 * sin], axis=-1).astype(x.dtype)

    def tables(
        self, positions: Int[Array, "B T"], dim: int
    ) -> tuple[Float[Array, "B T half_dim"], Float[Array, "B T half_dim"]]:
        """The cosines and sines for dim features at the given positions, float32, rounded to
        table_dtype.
        """
        angle = positions.astype(jnp.float32)[..., None] * self.frequencies(dim)
        rounded = lambda x: x.astype(self.table_dtype).astype(jnp.float32)
        return rounded(jnp.cos(angle)), rounded(jnp.sin(angle))
