"""How each parameter is split over the mesh: its axes have names, and the config maps the names to
mesh axes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from t6jax.errors import InputError
from t6jax.parallel.mesh import MESH_AXES, axis_size

# The named axes of parameters that stay split over `tensor` while they are used. All others are
# gathered first.
SPLIT_IN_USE = ("heads", "kv_heads", "mlp", "vocab")


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a parameter is split. Each attribute has an entry for each axis of the parameter, except
    the leading axis of layers of a stacked one.

    Attributes:
        names: of the axes.
        shape: of the whole parameter.
        stored: the mesh axes that split an axis while the parameter is stored, the slowest first.
        used: the mesh axis that splits an axis while the parameter is used; the last shard is
            padded with zeros.
    """

    names: tuple[str | None, ...]
    shape: tuple[int, ...]
    stored: tuple[tuple[str, ...], ...]
    used: tuple[str | None, ...]

    def axis(self, name: str) -> str | None:
        """The mesh axis that splits a named axis while it is used."""
        return self.used[self.names.index(name)]


def place_parameter(
    names: tuple[str | None, ...],
    shape: tuple[int, ...],
    sizes: Mapping[str, int],
    rules: Mapping[str, tuple[str, ...]],
    whole: tuple[str, ...] = (),
) -> Placement:
    """The placement of a parameter by sharding rules.

    A mesh axis splits one axis of a parameter. If it does not divide the axis that the rules name,
    it splits in storage the largest other axis that it divides, counted on one device; if it
    divides none, all devices along it store the same.

    Args:
        names: of the parameter's axes.
        shape: of the whole parameter.
        sizes: mesh axis -> size.
        rules: name of an axis -> mesh axes.
        whole: names that are not split while the parameter is used, whatever the rules say.
    """
    stored: list[tuple[str, ...]] = [() for _ in shape]
    left = list(shape)  # of each axis, on one device

    def split(k: int, axis: str) -> bool:
        if left[k] % sizes[axis]:
            return False
        left[k] //= sizes[axis]
        stored[k] += (axis,)
        return True

    wanted = [(k, axis) for k, name in enumerate(names) for axis in rules.get(name or "", ())]
    done: set[str] = set()
    used: list[str | None] = [None] * len(shape)
    for k, axis in wanted:
        divides = shape[k] % sizes[axis] == 0
        may = (
            names[k] in SPLIT_IN_USE
            and names[k] not in whole
            and (names[k] != "kv_heads" or divides)
        )
        if axis == "tensor" and sizes[axis] > 1 and may and not any(used):
            used[k] = axis
        if axis not in done and split(k, axis):
            done.add(axis)
    for _, axis in wanted:
        if axis not in done and any(
            split(k, axis) for k in sorted(range(len(shape)), key=lambda k: -left[k])
        ):
            done.add(axis)
    for k, axis in enumerate(used):
        # what stays split in use comes first, so that the rest can be gathered within each shard
        if axis in stored[k]:
            stored[k] = (axis, *(a for a in stored[k] if a != axis))
    return Placement(tuple(names), tuple(shape), tuple(stored), tuple(used))


def mesh_axis(variable: nnx.Variable, name: str) -> str | None:
    """The mesh axis that splits a parameter's named axis while it is used; None: the device has all
    of it.
    """
    placement = variable.get_metadata().get("placement")
    return placement and placement.axis(name)


def psum_over(variable: nnx.Variable, name: str, x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """x, a contraction with a parameter along its named axis, summed over the devices that have
    shards of that axis.
    """
    axis = mesh_axis(variable, name)
    return jax.lax.psum(x, axis) if axis else x


def shard_start(variable: nnx.Variable, name: str) -> Int[Array, ""] | int:
    """The index in the whole of a parameter's named axis at which this device's shard begins."""
    placement: Placement | None = variable.get_metadata().get("placement")
    axis = mesh_axis(variable, name)
    if placement is None or not axis:
        return 0
    length = placement.shape[placement.names.index(name)]
    return jax.lax.axis_index(axis) * -(-length // axis_size(axis))


def parse_sharding_rules(rules: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Name of a parameter's axis -> mesh axes, from the config's "", "fsdp" or "fsdp,sequence".

    Raises:
        InputError: a rule names something other than mesh axes, or one of them twice.
    """
    parsed = {
        name: tuple(axis.strip() for axis in text.split(",") if axis.strip())
        for name, text in rules.items()
    }
    for name, axes in parsed.items():
        if not set(axes) <= set(MESH_AXES) or len(set(axes)) < len(axes):
            raise InputError(
                f"sharding.{name} must be '' or of {', '.join(MESH_AXES)}, several with commas "
                f"between; got {rules[name]!r}"
            )
    return parsed


def placements(
    model: nnx.Module,
    mesh: Mesh | AbstractMesh,
    rules: Mapping[str, str],
    whole: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The Placement of each parameter of a model, as a pure dict.

    whole: names of axes that are not split while they are used.
    """
    parsed, sizes = parse_sharding_rules(rules), dict(mesh.shape)

    def one(variable: nnx.Variable) -> nnx.Variable:
        names = variable.get_metadata()["axes"]
        shape = variable.get_value().shape
        return variable.replace(
            place_parameter(names, shape[len(shape) - len(names) :], sizes, parsed, whole)
        )

    is_variable = lambda x: isinstance(x, nnx.Variable)
    return nnx.to_pure_dict(jax.tree.map(one, nnx.state(model), is_leaf=is_variable))


def partition_spec(placement: Placement, ndim: int) -> PartitionSpec:
    """The PartitionSpec of a stored parameter of ndim axes; an axis of layers is not split."""
    one_or_more = lambda axes: None if not axes else axes[0] if len(axes) == 1 else axes
    return PartitionSpec(
        *(None,) * (ndim - len(placement.shape)), *map(one_or_more, placement.stored)
    )
