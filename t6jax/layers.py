"""SwiGLU, and parameters with named axes (section 3.5)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, DTypeLike, Float

from t6jax.ops.names import GATED
from t6jax.ops.swiglu import swiglu
from t6jax.parallel.placement import psum_over


def parameter(value: Array, *axes: str | None) -> nnx.Param:
    """A parameter whose axes have names, which the config's sharding rules map to mesh axes."""
    if len(axes) != value.ndim:
        raise ValueError(f"{len(axes)} axis names for a parameter of shape {value.shape}")
    return nnx.Param(value, axes=axes)


def uniform(key: Array, bound: float, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """U(-bound, bound)."""
    return jax.random.uniform(key, shape, dtype, -bound, bound)


# columns that a matrix product on a GPU computes at a time
TILE = 128


def worth_copying_weights(x: Float[Array, "*batch d_model"]) -> bool:
    """Whether x has enough tokens to pay for a padded or concatenated copy of weights, with which
    its product is faster.
    """
    return math.prod(x.shape[:-1]) >= x.shape[-1]


def pad_columns(w: Float[Array, "n_in n_out"]) -> Float[Array, "n_in padded"]:
    """w padded with columns of zeros to whole tiles, unless that would add more than an eighth.

    A width that is not a multiple of 8, such as floor(8/3 d_model), slows matrix products on a GPU
    by 30 %.
    """
    width = w.shape[1]
    return jnp.pad(w, ((0, 0), (0, -width % TILE))) if width >= 8 * TILE else w


class SwiGLU(nnx.Module):
    """[silu(x W_1) * (x W_2)] W_3 (section 3.5). W_3 starts at zero, as in the published code.

    Where devices split the width, each has some columns of W_1 and W_2 and the same rows of W_3,
    and the product is summed over devices.
    """

    def __init__(
        self, d_model: int, width: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        bound = d_model**-0.5
        self.w_1 = parameter(
            uniform(rngs.params(), bound, (d_model, width), param_dtype), "d_model", "mlp"
        )
        self.w_2 = parameter(
            uniform(rngs.params(), bound, (d_model, width), param_dtype), "d_model", "mlp"
        )
        self.w_3 = parameter(jnp.zeros((width, d_model), param_dtype), "mlp", "d_model")
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch d_model"]) -> Float[Array, "*batch d_model"]:
        w_1, w_2, w_3 = (w[...].astype(self.dtype) for w in (self.w_1, self.w_2, self.w_3))
        if worth_copying_weights(x):
            # w_1 and w_2 are not concatenated: their gradients would have to be too
            w_1, w_2, w_3 = pad_columns(w_1), pad_columns(w_2), pad_columns(w_3.T).T
        gated = checkpoint_name(swiglu(x @ w_1, x @ w_2), GATED)
        return psum_over(self.w_3, "mlp", gated @ w_3)
