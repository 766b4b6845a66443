"""A model over the devices of a mesh: what a device holds of each parameter and of each sequence, and what devices exchange.

The training step runs the model's code on every device at once (jax.shard_map), on that device's rows, tokens, heads, columns
of the SwiGLU and part of the vocabulary. A parameter is stored in pieces; gathering.py brings together what is used of it.
Outside such a step nothing here does anything.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

# from the slowest links to the fastest: neighbours along the last axis are neighbours in the list of devices
MESH_AXES = ("data", "fsdp", "sequence", "tensor")
# the mesh axes that the rows of a batch are split over, and those that its tokens are
BATCH_AXES = ("data", "fsdp")
TOKEN_AXES = (*BATCH_AXES, "sequence")
# the named axes of parameters that stay split over `tensor` while the model runs; all others are gathered first
SPLIT_IN_USE = ("heads", "kv_heads", "mlp", "vocab")


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a parameter lies, an entry for each of its axes (a stacked parameter's axis of layers apart).

    names: its named axes. shape: of the whole. stored: the mesh axes that split it while it is stored, the slowest first.
    used: the mesh axis that splits it while it is used, the last part filled up with zeros.
    """

    names: tuple[str | None, ...]
    shape: tuple[int, ...]
    stored: tuple[tuple[str, ...], ...]
    used: tuple[str | None, ...]

    def axis(self, name: str) -> str | None:
        """The mesh axis that splits a named axis while it is used."""
        return self.used[self.names.index(name)]


def place(
    names: tuple[str | None, ...],
    shape: tuple[int, ...],
    sizes: Mapping[str, int],
    rules: Mapping[str, tuple[str, ...]],
    whole: tuple[str, ...] = (),
) -> Placement:
    """The placement of a parameter by the rules: name of an axis -> mesh axes.

    A mesh axis splits one axis of a parameter. Where it does not divide the axis that the rules name, it splits another while
    the parameter is stored, the one of which most is left; where it divides none, the parameter is whole along it.
    whole: names that are not split while they are used, whatever the rules say.
    """
    stored: list[tuple[str, ...]] = [() for _ in shape]
    left = list(shape)  # of each axis, on one device

    def split(k: int, axis: str) -> bool:
        if left[k] % sizes[axis]:
            return False
        left[k] //= sizes[axis]
        stored[k] += (axis,)
        return True

    wanted = [(k, axis) for k, name in enumerate(names) for axis in rules.get(name, ())]
    done: set[str] = set()
    used: list[str | None] = [None] * len(shape)
    for k, axis in wanted:
        divides = shape[k] % sizes[axis] == 0
        may = names[k] in SPLIT_IN_USE and names[k] not in whole and (names[k] != "kv_heads" or divides)
        if axis == "tensor" and sizes[axis] > 1 and may and not any(used):
            used[k] = axis
        if axis not in done and split(k, axis):
            done.add(axis)
    for _, axis in wanted:
        if axis not in done and any(split(k, axis) for k in sorted(range(len(shape)), key=lambda k: -left[k])):
            done.add(axis)
    for k, axis in enumerate(used):
        if axis in stored[k]:  # what stays split comes first, so that the rest can be gathered behind it
            stored[k] = (axis, *(a for a in stored[k] if a != axis))
    return Placement(tuple(names), tuple(shape), tuple(stored), tuple(used))


def split_axis(variable: nnx.Variable, name: str) -> str | None:
    """The mesh axis that splits a parameter's named axis while it is used; None: the device has all of it."""
    placement = variable.get_metadata().get("placement")
    return placement and placement.axis(name)


def sum_over(variable: nnx.Variable, name: str, x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """x, a contraction with the parameter along its named axis, summed over the devices that hold parts of that axis."""
    axis = split_axis(variable, name)
    return jax.lax.psum(x, axis) if axis else x


def first_index(variable: nnx.Variable, name: str) -> Int[Array, ""] | int:
    """Where the device's part of a parameter's named axis begins."""
    placement, axis = variable.get_metadata().get("placement"), split_axis(variable, name)
    if not axis:
        return 0
    return jax.lax.axis_index(axis) * -(-placement.shape[placement.names.index(name)] // size(axis))


# A sequence over s devices: cut into 2s chunks, of which device i has chunks i and 2s-1-i. Every device then has one chunk
# with little to look back at and one with much, and as much work as the others.


def sequence_parts() -> int:
    """The devices that each sequence is split over."""
    return size("sequence")


def own_tokens(tokens: Any) -> Any:
    """This device's two chunks of arrays [B, T, ...]; T is a multiple of 2s."""
    parts = sequence_parts()
    if parts == 1:
        return tokens

    def own(x: Array) -> Array:
        chunks = x.reshape(x.shape[0], 2 * parts, -1, *x.shape[2:])
        pick = lambda n: jax.lax.dynamic_index_in_dim(chunks, n, axis=1, keepdims=False)
        return jnp.concatenate([pick(n) for n in own_chunks()], axis=1)

    return jax.tree.map(own, tokens)


def own_chunks() -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The numbers of this device's two chunks, the earlier one first: below s, and from s on."""
    i = jax.lax.axis_index("sequence")
    return i, 2 * sequence_parts() - 1 - i


def whole_sequence(own: Any) -> Any:
    """The inverse of own_tokens: arrays [B, T, ...] from what all devices of a sequence have, in its order."""
    parts = sequence_parts()
    if parts == 1:
        return own

    def whole(x: Array) -> Array:
        x = jax.lax.all_gather(x, "sequence", axis=1)  # [B, s, 2 chunks, ...]
        x = x.reshape(x.shape[0], parts, 2, -1, *x.shape[3:])
        x = jnp.concatenate([x[:, :, 0], jnp.flip(x[:, :, 1], axis=1)], axis=1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    return jax.tree.map(whole, own)


def size(axis: str) -> int:
    """The devices along a mesh axis: 1 outside of a program that every device runs."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in mesh.manual_axes else 1


def and_sums(policy: Any) -> Any:
    """A rematerialisation policy that keeps sums over devices besides, in place of what each device had added."""
    return lambda primitive, *operands, **settings: primitive.name == "psum" or policy(primitive, *operands, **settings)


def keeps_activations(rows: int, tokens: int) -> Any:
    """A rematerialisation policy: all that comes of this device's tokens is kept; gathered parameters are gathered again.

    So what other devices send of a sequence is kept, and what this one makes of all of it is made again: keys and values of the
    whole sequence do not shrink with the number of devices. Known by shape, B and T among an operand's axes or B T first: what is
    taken for a parameter by mistake is recomputed, and a parameter that has these sizes by chance is kept.
    """
    lengths = {tokens} | ({tokens // 2} if sequence_parts() > 1 else set())

    def of_tokens(x: Any) -> bool:
        shape = getattr(x, "shape", ())
        rest = set(shape[1:])
        return bool(shape) and ((shape[0] == rows and bool(rest & lengths)) or shape[0] == rows * tokens)

    def policy(primitive: Any, *operands: Any, **_: Any) -> bool:
        return any(of_tokens(x) for x in operands)

    return policy
