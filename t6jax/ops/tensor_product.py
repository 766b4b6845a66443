"""The tensor product that gives TPA its name."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def combine(a: Float[Array, "*batch R H"], b: Float[Array, "*batch R D"]) -> Float[Array, "*batch H D"]:
    """1/R sum_r a_r (x) b_r, eq. 3.1: the dense query, key or value of each token from its factors.

    The sum runs in float32; the result has the factors' dtype.
    """
    product = jnp.einsum("...rh,...rd->...hd", a, b, preferred_element_type=jnp.float32)
    return (product / a.shape[-2]).astype(jnp.result_type(a, b))
