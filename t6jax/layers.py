"""The parts of a T6 block that are not attention: parameters with named axes, RMSNorm, SwiGLU (section 3.5)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, DTypeLike, Float

from t6jax.ops.precision import at_least_float32

# RMSNorm's epsilon in the published code: the machine epsilon of the float32 that it is computed in
FLOAT32_EPSILON = float(jnp.finfo(jnp.float32).eps)


def parameter(value: Array, *axes: str | None) -> nnx.Param:
    """A parameter whose axes carry names; the config's sharding rules map these names to mesh axes."""
    if len(axes) != value.ndim:
        raise ValueError(f"{len(axes)} axis names for a parameter of shape {value.shape}")
    return nnx.Param(value, axes=axes)


def uniform(key: Array, bound: float, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """U(-bound, bound)."""
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def rms_norm(
    x: Float[Array, "*batch D"], epsilon: float = FLOAT32_EPSILON, weight: Float[Array, "D"] | None = None
) -> Float[Array, "*batch D"]:
    """x over the root of its mean square along the last axis, in float32, returned in x's dtype; then times the weight."""
    wide = at_least_float32(x)
    normed = (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)).astype(x.dtype)
    return normed if weight is None else normed * weight.astype(x.dtype)


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
        return (jax.nn.silu(x @ w_1) * (x @ w_2)) @ w_3
