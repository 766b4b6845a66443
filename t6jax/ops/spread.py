"""Arrays on a mesh, outside of jax.shard_map."""

import jax
from jaxtyping import Array


def is_spread(x: Array) -> bool:
    """Whether several devices of a mesh may each hold a part of x, outside of jax.shard_map.

    XLA's operations and cuDNN's calls are then partitioned by the compiler; the kernels for
    attention, and loops over sequences and heads, cannot be.
    """
    mesh = jax.typeof(x).sharding.mesh
    return bool(mesh.explicit_axes or (mesh.auto_axes and mesh.size > 1))
