"""The mesh, and where each array lies on it: parameters name their axes, the config maps the names to mesh axes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from t6jax.errors import InputError
from t6jax.parallel import BATCH_AXES, MESH_AXES, Placement, place


def make_mesh(config: Mapping[str, int], given: Sequence[jax.Device] | None = None, *, plan: bool = False) -> Mesh | AbstractMesh:
    """The mesh of devices (default: all at hand) with the sizes the config gives; one of them may be -1, for what is left.

    plan: where the sizes ask for other devices than there are, a mesh without devices, to look at shardings with.
    """
    sizes = [config[axis] for axis in MESH_AXES]
    devices = jax.device_count() if given is None else len(given)
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
    return jax.make_mesh(sizes, MESH_AXES, axis_types=axis_types, devices=given)


def parse_rules(rules: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Name of a parameter's axis -> mesh axes, from the config's "", "fsdp" or "fsdp,sequence".

    Raises InputError for what is no mesh axis.
    """
    parsed = {name: tuple(axis.strip() for axis in text.split(",") if axis.strip()) for name, text in rules.items()}
    for name, axes in parsed.items():
        if not set(axes) <= set(MESH_AXES) or len(set(axes)) < len(axes):
            raise InputError(
                f"sharding.{name} must be '' or of {', '.join(MESH_AXES)}, several with commas between; got {rules[name]!r}"
            )
    return parsed


def placements(
    model: nnx.Module, mesh: Mesh | AbstractMesh, rules: Mapping[str, str], whole: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The Placement of each parameter of a model, as a pure dict.

    whole: names of axes that are not split while they are used.
    """
    parsed, sizes = parse_rules(rules), dict(mesh.shape)

    def one(variable: nnx.Variable) -> nnx.Variable:
        names = variable.get_metadata()["axes"]
        shape = variable.get_value().shape
        return variable.replace(place(names, shape[len(shape) - len(names) :], sizes, parsed, whole))

    is_variable = lambda x: isinstance(x, nnx.Variable)
    return nnx.to_pure_dict(jax.tree.map(one, nnx.state(model), is_leaf=is_variable))


def spec(placement: Placement, ndim: int) -> PartitionSpec:
    """How a stored parameter of so many axes is split; an axis of layers in front is not."""
    one_or_more = lambda axes: None if not axes else axes[0] if len(axes) == 1 else axes
    return PartitionSpec(*(None,) * (ndim - len(placement.shape)), *map(one_or_more, placement.stored))


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Rows of a batch over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
