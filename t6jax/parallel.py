"""A model over the devices of a mesh: what a device holds of each parameter and of each sequence, and what devices exchange.

The training step runs the model's code on every device at once (jax.shard_map), on that device's rows, tokens, heads, columns
of the SwiGLU and part of the vocabulary. A parameter is stored in pieces; `used` brings together what the device needs of it.
Outside such a step nothing here does anything.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

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


def used(variable: nnx.Variable, dtype: DTypeLike | None = None) -> Array:
    """What this device uses of a parameter, in a dtype (default: its own).

    Gathered in that dtype; the sums of its gradient over devices are taken in float32.
    """
    x = variable[...]
    x = x if dtype is None else x.astype(dtype)
    placement = variable.get_metadata().get("placement")
    if placement is None:
        return x
    return _used(variable[...], placement, x.dtype)


def used_layer(state: nnx.State, dtype: DTypeLike) -> nnx.State:
    """`used` of all parameters of a layer; without a mesh, the layer as it is."""
    is_variable = lambda v: isinstance(v, nnx.Variable)
    placed = lambda v: "placement" in v.get_metadata()
    return jax.tree.map(lambda v: v.replace(used(v, dtype)) if placed(v) else v, state, is_leaf=is_variable)


def _used(x: Array, p: Placement, dtype: DTypeLike) -> Array:
    target = next((k for k, axis in enumerate(p.used) if axis), None)
    tensor_on = next((k for k, axes in enumerate(p.stored) if "tensor" in axes), None)
    # the axis that tensor is stored on comes last: by then the axis it goes to is whole
    for k in sorted(range(x.ndim), key=lambda k: k == tensor_on):
        axes = p.stored[k]
        if k == tensor_on == target:
            x = _gather(x, axes[1:], k, dtype)
        elif k == tensor_on and target is not None:
            x = _gather(x, axes[axes.index("tensor") + 1 :], k, dtype)
            x = jax.lax.all_to_all(_whole_parts(x.astype(dtype), target), "tensor", target, k, tiled=True)
            x = _gather(x, axes[: axes.index("tensor")], k, dtype)
        else:
            x = _gather(x, axes, k, dtype)
    x = x.astype(dtype)
    if target is not None and tensor_on is None:
        x = _whole_parts(x, target)
        size = x.shape[target] // _size("tensor")
        x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("tensor") * size, size, target)
    return x


def _whole_parts(x: Array, k: int) -> Array:
    """x with zeros behind axis k, up to a multiple of the tensor axis."""
    missing = -x.shape[k] % _size("tensor")
    return jnp.pad(x, [(0, missing if i == k else 0) for i in range(x.ndim)])


def _gather(x: Array, axes: tuple[str, ...], k: int, dtype: DTypeLike) -> Array:
    axes = tuple(axis for axis in axes if _size(axis) > 1)
    return _gathered(x, axes, k, jnp.dtype(dtype), x.dtype) if axes else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gathered(x, axes, k, dtype, own):
    return jax.lax.all_gather(x.astype(dtype), axes, axis=k, tiled=True)


def _sum_pieces(axes, k, dtype, own, _, g):
    wide = jnp.promote_types(own, jnp.float32)
    return (jax.lax.psum_scatter(g.astype(wide), axes, scatter_dimension=k, tiled=True).astype(own),)


_gathered.defvjp(lambda x, *static: (_gathered(x, *static), None), _sum_pieces)


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
    return jax.lax.axis_index(axis) * -(-placement.shape[placement.names.index(name)] // _size(axis))


def look_up(table: nnx.Variable, tokens: Int[Array, "B T"], dtype: DTypeLike) -> Float[Array, "B T d_model"]:
    """The rows of a table ["vocab", "d_model"] for tokens, in a dtype.

    Looked up before the cast: the gradient of a frequent token is then a sum in the parameters' dtype.
    """
    rows = used(table)
    axis = split_axis(table, "vocab")
    if not axis:
        return rows[tokens].astype(dtype)
    here = tokens - first_index(table, "vocab")
    found = rows.at[here].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    return jax.lax.psum(found.astype(dtype), axis)


# A sequence over s devices: cut into 2s chunks, of which device i has chunks i and 2s-1-i. Every device then has one chunk
# with little to look back at and one with much, and as much work as the others.


def sequence_parts() -> int:
    """The devices that each sequence is split over."""
    return _size("sequence")


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


def is_gathered(state: nnx.State) -> bool:
    """Whether other devices store some of what this one uses of these parameters."""
    for variable in jax.tree.leaves(state, is_leaf=lambda v: isinstance(v, nnx.Variable)):
        if placement := variable.get_metadata().get("placement"):
            for axes, kept in zip(placement.stored, placement.used, strict=True):
                if any(_size(axis) > 1 for axis in axes if axis != kept):
                    return True
    return False


def _size(axis: str) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in mesh.manual_axes else 1


def and_sums(policy: Any) -> Any:
    """A rematerialisation policy that keeps sums over devices besides, in place of what each device had added."""
    return lambda primitive, *operands, **settings: primitive.name == "psum" or policy(primitive, *operands, **settings)


def keeps_activations(rows: int, tokens: int) -> Any:
    """A rematerialisation policy: all that depends on tokens is kept, gathered parameters are gathered again.

    Known by shape, B and T among an operand's axes or B T first: what is taken for a parameter by mistake is recomputed.
    """
    parts = sequence_parts()
    lengths = {tokens, tokens * parts} | ({tokens // 2, tokens * parts // 2} if parts > 1 else set())

    def of_tokens(x: Any) -> bool:
        shape = getattr(x, "shape", ())
        rest = set(shape[1:])
        return bool(shape) and ((shape[0] == rows and bool(rest & lengths)) or shape[0] == rows * tokens)

    def policy(primitive: Any, *operands: Any, **_: Any) -> bool:
        return any(of_tokens(x) for x in operands)

    return policy
