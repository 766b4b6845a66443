"""The parts of a T6 block that are not attention: parameters with named axes, RMSNorm, SwiGLU (section 3.5)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, DTypeLike, Float

from t6jax.ops.swiglu import swiglu


def parameter(value: Array, *axes: str | None) -> nnx.Param:
    """A parameter whose axes carry names; the config's sharding rules map these names to mesh axes."""
    if len(axes) != value.ndim:
        raise ValueError(f"{len(axes)} axis names for a parameter of shape {value.shape}")
    return nnx.Param(value, axes=axes)


def uniform(key: Array, bound: float, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """U(-bound, bound)."""
    return jax.random.uniform(key, shape, dtype, -bound, bound)


# columns that a GPU's matrix products work on at a time
TILE = 128

# the mesh axes that the rows of a batch are split over
BATCH_AXES = ("data", "fsdp")


def split_batch(x: Float[Array, "B *rest"]) -> Float[Array, "B *rest"]:
    """Keeps the rows of x split over the batch's axes of the mesh that is being compiled for, if there is one.

    Without it the compiler, seeing parameters split over fsdp, may split features instead and send activations around.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    if not axes or x.shape[0] % math.prod(mesh.shape[axis] for axis in axes):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


def worth_copying_weights(x: Float[Array, "*batch d_model"]) -> bool:
    """Whether a copy of weights, padded or put side by side, pays for itself by a faster product with x: with many tokens.

    Not where a mesh splits weights over its tensor axis: what would lie side by side is on different devices.
    """
    return math.prod(x.shape[:-1]) >= x.shape[-1] and jax.sharding.get_abstract_mesh().shape.get("tensor", 1) == 1


def pad_columns(w: Float[Array, "n_in n_out"]) -> Float[Array, "n_in padded"]:
    """w with columns of zeros up to whole tiles, where that adds little.

    A width that is no multiple of 8, as floor(8/3 d_model), costs a GPU's matrix products 30 %.
    """
    width = w.shape[1]
    return jnp.pad(w, ((0, 0), (0, -width % TILE))) if width >= 8 * TILE else w


class SwiGLU(nnx.Module):
    """[silu(x W_1) * (x W_2)] W_3 (section 3.5). W_3 starts at zero, as in the published code."""

    def __init__(self, d_model: int, width: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        bound = d_model**-0.5
        self.w_1 = parameter(uniform(rngs.params(), bound, (d_model, width), param_dtype), "d_model", "mlp")
        self.w_2 = parameter(uniform(rngs.params(), bound, (d_model, width), param_dtype), "d_model", "mlp")
        self.w_3 = parameter(jnp.zeros((width, d_model), param_dtype), "mlp", "d_model")
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch d_model"]) -> Float[Array, "*batch d_model"]:
        w_1, w_2, w_3 = (w[...].astype(self.dtype) for w in (self.w_1, self.w_2, self.w_3))
        if worth_copying_weights(x):
            # not joined: their gradients would have to be
            w_1, w_2, w_3 = pad_columns(w_1), pad_columns(w_2), pad_columns(w_3.T).T
        return swiglu(x @ w_1, x @ w_2) @ w_3
