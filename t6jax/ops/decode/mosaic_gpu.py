"""FlashTPA decoding by the Mosaic GPU kernel for Hopper."""

from jaxtyping import Array, Float, Int

from t6jax.ops.decode import kernels
from t6jax.ops.implementation import not_hopper
from t6jax.ops.tpa_cache import TPACache
from t6jax.ops.tpa_factors import FixedFactors, TPAQuery


def unsupported(cache: TPACache, scale: float) -> str | None:
    """Why the kernel does not take a call, or None."""
    return not_hopper() or kernels.unsupported("mosaic_gpu", cache, scale)


def decode(
    query: TPAQuery | Float[Array, "B N H D"],
    cache: TPACache,
    lengths: Int[Array, "B"],
    fixed: FixedFactors,
    *,
    scale: float,
) -> tuple[Float[Array, "B N H E"], Float[Array, "B N H"]]:
    """Attention of N new tokens over the factor cache, and its float32 log-sum-exp."""
    return kernels.decode("mosaic_gpu", query, cache, lengths, fixed, scale=scale)
