"""The tensor products that give TPA its name."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from t6jax.ops.precision import accumulator


def combine(a: Float[Array, "*#batch R H"], b: Float[Array, "*#batch R D"]) -> Float[Array, "*batch H D"]:
    """1/R sum_r a_r (x) b_r, eq. 3.1: the dense query, key or value of each token from its factors.

    Leading axes broadcast: a factor that is the same for all tokens needs none. The sum runs in float32; the result has
    the factors' dtype.
    """
    product = jnp.einsum("...rh,...rd->...hd", a, b, preferred_element_type=accumulator(a.dtype, b.dtype))
    return (product / a.shape[-2]).astype(jnp.result_type(a, b))


def vec(b: Float[Array, "*batch D_b"], c: Float[Array, "*batch D_c"]) -> Float[Array, "*batch D_b*D_c"]:
    """vec(b (x) c) of appendix E: the columns b c_1, b c_2, ... after one another, so that RoPE on b rotates each."""
    product = c[..., :, None] * b[..., None, :]
    return product.reshape(*product.shape[:-2], -1)
