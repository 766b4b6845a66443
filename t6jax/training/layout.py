"""The mesh of a run, with the config checked against it."""

from typing import Literal, overload

from jax.sharding import AbstractMesh, Mesh

from t6jax.config import RunConfig, check_trainable
from t6jax.parallel.mesh import make_mesh


@overload
def mesh_for(config: RunConfig, *, plan: Literal[False] = False) -> Mesh: ...


@overload
def mesh_for(config: RunConfig, *, plan: bool) -> Mesh | AbstractMesh: ...


def mesh_for(config: RunConfig, *, plan: bool = False) -> Mesh | AbstractMesh:
    """The mesh that a config asks for.

    Training and --dry_run both begin here, so that they refuse the same configs.

    Args:
        plan: the mesh may ask for other devices than there are.

    Raises:
        InputError: the config cannot be trained, or not on this mesh.
    """
    mesh = make_mesh(config.mesh.to_dict(), plan=plan)
    check_trainable(config, mesh.shape)
    return mesh
