"""The mesh of devices, its axes, and how a batch is split over them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from t6jax.errors import InputError

# From the slowest links to the fastest: neighbours along the last axis are neighbours in the list
# of devices.
MESH_AXES = ("data", "fsdp", "sequence", "tensor")
# the mesh axes that the rows of a batch are split over, and those that its tokens are
BATCH_AXES = ("data", "fsdp")
TOKEN_AXES = (*BATCH_AXES, "sequence")


@overload
def make_mesh(
    config: Mapping[str, int],
    given: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm] # a class
    *,
    plan: Literal[False] = False,
) -> Mesh: ...


@overload
def make_mesh(
    config: Mapping[str, int],
    given: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm] # a class
    *,
    plan: bool,
) -> Mesh | AbstractMesh: ...


def make_mesh(
    config: Mapping[str, int],
    given: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm] # a class
    *,
    plan: bool = False,
) -> Mesh | AbstractMesh:
    """The mesh of devices with the sizes that the config gives.

    Args:
        config: mesh axis -> size. One of them may be -1: it gets the remaining devices.
        given: the devices, default all.
        plan: whether sizes that do not multiply to the number of devices give a mesh without
            devices, on which programs can be traced but not run.

    Raises:
        InputError: the sizes are wrong, or do not multiply to the number of devices.
    """
    sizes = [config[axis] for axis in MESH_AXES]
    devices = jax.device_count() if given is None else len(given)
    known = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise InputError(
            "mesh sizes must be at least 1, and one of them may be -1; got "
            f"{dict(zip(MESH_AXES, sizes, strict=True))}"
        )
    sizes = [max(devices // known, 1) if s == -1 else s for s in sizes]
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    if plan and math.prod(sizes) != devices:
        return AbstractMesh(tuple(sizes), MESH_AXES, axis_types=axis_types)
    if math.prod(sizes) != devices:
        asked = ", ".join(f"{axis} {config[axis]}" for axis in MESH_AXES)
        raise InputError(
            f"mesh ({asked}) needs {math.prod(sizes)} devices and {devices} are available: give "
            f"sizes whose product is {devices}, or -1 for one of them"
        )
    return jax.make_mesh(sizes, MESH_AXES, axis_types=axis_types, devices=given)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The rows of a batch split over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def bytes_per_device(arrays: Any) -> int:
    """The bytes that one device holds of a pytree of arrays, or of shapes, with shardings."""
    sizes = jax.tree.map(
        lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize, arrays
    )
    return sum(jax.tree.leaves(sizes))


def axis_size(axis: str) -> int:
    """The number of devices along a mesh axis; 1 outside of jax.shard_map."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in mesh.manual_axes else 1
