"""The mesh, and where each array lies on it: parameters name their axes, the config maps the names to mesh axes."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from t6jax.errors import InputError
from t6jax.layers import BATCH_AXES

MESH_AXES = ("data", "fsdp", "tensor")


def make_mesh(config: Mapping[str, int], *, plan: bool = False) -> Mesh | AbstractMesh:
    """The mesh of all devices with the sizes the config gives; one of them may be -1, for what is left.

    plan: where the sizes ask for other devices than there are, a mesh without devices, to look at shardings with.
    """
    sizes = [config[axis] for axis in MESH_AXES]
    devices = jax.device_count()
    known = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise InputError(
            f"mesh sizes must be at least 1, and one of them may be -1; got {dict(zip(MESH_AXES, sizes, strict=True))}"
        )
    sizes = [max(devices // known, 1) if s == -1 else s for s in sizes]
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    if plan and math.prod(sizes) != devices:
        return AbstractMesh(tuple(sizes), MESH_AXES, axis_types=axis_types)
    if math.prod(sizes) != devices:
        asked = ", ".join(f"{axis} {config[axis]}" for axis in MESH_AXES)
        raise InputError(f"mesh ({asked}) does not multiply to the {devices} devices at hand")
    return jax.make_mesh(sizes, MESH_AXES, axis_types=axis_types)


def parameter_shardings(state: nnx.State, mesh: Mesh | AbstractMesh, rules: Mapping[str, str | None]) -> dict[str, Any]:
    """A NamedSharding for each parameter, as a pure dict: its named axes by the rules, stacked layer axes not split.

    rules: name of a parameter's axis -> mesh axis or "". An axis that the mesh axis does not divide is not split; nor is a
    second axis of one parameter over the same mesh axis.
    """

    def one(variable: nnx.Variable) -> NamedSharding:
        shape = variable.get_value().shape
        names = variable.get_metadata()["axes"]
        names = (None,) * (len(shape) - len(names)) + tuple(names)
        spec: list[str | None] = []
        for name, size in zip(names, shape, strict=True):
            axis = rules.get(name) if name else None
            usable = axis and axis not in spec and size % mesh.shape[axis] == 0
            spec.append(axis if usable else None)
        return NamedSharding(mesh, PartitionSpec(*spec))

    for name, axis in rules.items():
        if axis and axis not in MESH_AXES:
            raise InputError(f"sharding.{name} must be one of {', '.join(MESH_AXES)} or ''; got {axis!r}")
    is_variable = lambda x: isinstance(x, nnx.Variable)
    return nnx.to_pure_dict(jax.tree.map(lambda v: v.replace(one(v)), state, is_leaf=is_variable))


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Rows of a batch over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
