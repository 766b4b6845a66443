"""Rotary position embedding (appendix H.5), in the half-split pairing of the published code."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class RoPE:
    """Rotates feature pairs (i, i + D/2) by position * base**(-2i/D).

    base: the base of the frequencies.
    table_dtype: the cosines and sines are rounded to this dtype; the published code rounds them to bfloat16.
    """

    base: float = 10000.0
    table_dtype: str = "float32"

    def __call__(self, x: Float[Array, "B T *R D"], positions: Int[Array, "B T"]) -> Float[Array, "B T *R D"]:
        """Rotates the last axis of x by each token's position; computed in float32, returned in x's dtype."""
        half = x.shape[-1] // 2
        frequency = self.base ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angle = positions.astype(jnp.float32)[..., None] * frequency
        angle = angle.reshape(positions.shape + (1,) * (x.ndim - 3) + (half,))
        cos, sin = (f(angle).astype(self.table_dtype).astype(jnp.float32) for f in (jnp.cos, jnp.sin))
        x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate([x1 * cos + x2 * sin, x2 * cos - x1 * sin], axis=-1).astype(x.dtype)
