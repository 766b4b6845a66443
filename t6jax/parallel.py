"""A model over the devices of a mesh: what a device holds of each parameter and of each sequence, and what devices exchange.

The training step runs the model's code on every device at once (jax.shard_map), on that device's rows, tokens, heads, columns
of the SwiGLU and part of the vocabulary. A parameter is stored in pieces; `used` brings together what the device needs of it.
Outside such a step nothing here does anything.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

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
    placement = variable.get_metadata().get("placement")
    dtype = x.dtype if dtype is None else dtype
    return x.astype(dtype) if placement is None else _used(x, placement, dtype)


def used_layer(state: nnx.State, dtype: DTypeLike) -> nnx.State:
    """`used` of all parameters of a layer; without a mesh, the layer as it is."""
    layer = Layer(state, dtype)
    return layer.open(layer.gather(layer.pack(state)))


class Layer:
    """How the parameters of a layer come: those that one collective brings, over the same devices, as one array.

    Ten of a tenth of the size take twice as long.
    """

    def __init__(self, state: nnx.State, dtype: DTypeLike):
        """state: a layer's, to know its parameters by; its numbers are not looked at."""
        self._dtype = jnp.dtype(dtype)
        self._variables, self._tree = _variables(state)
        self._placements = [v.get_metadata().get("placement") for v in self._variables]
        together: dict[Any, list[int]] = {}
        for i, (v, p) in enumerate(zip(self._variables, self._placements, strict=True)):
            steps = _steps(p) if p else []
            alone = len(steps) != 1 or not steps[0].gather
            together.setdefault(i if alone else (steps[0].axes, v[...].dtype), []).append(i)
        self._groups = list(together.items())

    def pack(self, state: nnx.State) -> list[Array]:
        """What this device stores of a layer: an array for each group."""
        arrays = [v[...] for v in _variables(state)[0]]
        return [
            arrays[key] if isinstance(key, int) else jnp.concatenate([arrays[i].ravel() for i in members])
            for key, members in self._groups
        ]

    def gather(self, packed: list[Array]) -> list[Array]:
        """What it uses of the layer."""
        found = []
        for x, (key, _) in zip(packed, self._groups, strict=True):
            if not isinstance(key, int):
                x = _gathered(x, key[0], self._dtype, x.dtype)
            elif self._placements[key] is not None:
                x = _used(x, self._placements[key], self._dtype)
            found.append(x)
        return found

    def open(self, gathered: list[Array]) -> nnx.State:
        """The layer's parameters."""
        found: dict[int, Array] = {}
        for x, (key, members) in zip(gathered, self._groups, strict=True):
            if isinstance(key, int):
                found[key] = x
                continue
            pieces = [self._variables[i][...] for i in members]
            ends = list(itertools.accumulate(piece.size for piece in pieces))
            for i, piece, part in zip(members, pieces, jnp.split(x, ends[:-1], axis=1), strict=True):
                p = self._placements[i]
                found[i] = _own_part(_side_by_side(part.reshape(-1, *piece.shape), _steps(p)[0].k), p)
        variables = [v.replace(found[i]) for i, v in enumerate(self._variables)]
        return jax.tree.unflatten(self._tree, variables)


def _variables(state: nnx.State) -> tuple[list[nnx.Variable], Any]:
    return jax.tree.flatten(state, is_leaf=lambda v: isinstance(v, nnx.Variable))


class Step(NamedTuple):
    """One exchange on the way from what is stored of a parameter to what is used: axis k is gathered over mesh axes, or goes
    to other devices while the axis that tensor splits is cut."""

    gather: bool
    axes: tuple[str, ...]
    k: int


def _steps(p: Placement) -> list[Step]:
    """In their order, without those over one device."""
    target = next((k for k, axis in enumerate(p.used) if axis), None)
    tensor_on = next((k for k, axes in enumerate(p.stored) if "tensor" in axes), None)
    steps = []
    # the axis that tensor is stored on comes last: by then the axis it goes to is whole
    for k in sorted(range(len(p.shape)), key=lambda k: k == tensor_on):
        axes = p.stored[k]
        if k == tensor_on == target:
            steps.append(Step(True, axes[1:], k))
        elif k == tensor_on and target is not None:
            at = axes.index("tensor")
            steps += [Step(True, axes[at + 1 :], k), Step(False, ("tensor",), k), Step(True, axes[:at], k)]
        else:
            steps.append(Step(True, axes, k))
    steps = [step._replace(axes=tuple(axis for axis in step.axes if _size(axis) > 1)) for step in steps]
    return [step for step in steps if step.axes]


def _used(x: Array, p: Placement, dtype: DTypeLike) -> Array:
    for step in _steps(p):
        if step.gather:
            together = _gathered(x.ravel(), step.axes, jnp.dtype(dtype), x.dtype)
            x = _side_by_side(together.reshape(-1, *x.shape), step.k)
        else:
            target = next(k for k, axis in enumerate(p.used) if axis)
            x = jax.lax.all_to_all(_whole_parts(x.astype(dtype), target), "tensor", target, step.k, tiled=True)
    return _own_part(x.astype(dtype), p)


def _own_part(x: Array, p: Placement) -> Array:
    """This device's part of a parameter that is split over tensor while it is used, and not while it is stored."""
    target = next((k for k, axis in enumerate(p.used) if axis), None)
    if target is None or any("tensor" in axes for axes in p.stored):
        return x
    x = _whole_parts(x, target)
    size = x.shape[target] // _size("tensor")
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("tensor") * size, size, target)


def _whole_parts(x: Array, k: int) -> Array:
    """x with zeros behind axis k, up to a multiple of the tensor axis."""
    missing = -x.shape[k] % _size("tensor")
    return jnp.pad(x, [(0, missing if i == k else 0) for i in range(x.ndim)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(x: Array, axes: tuple[str, ...], dtype: Any, own: Any) -> Array:
    """x of all devices along mesh axes, a row for each, in a dtype."""
    return jax.lax.all_gather(x.astype(dtype), axes)


def _sum_pieces(axes: tuple[str, ...], dtype: Any, own: Any, _: None, g: Array) -> tuple[Array]:
    wide = jnp.promote_types(own, jnp.float32)
    return (jax.lax.psum_scatter(g.astype(wide), axes).astype(own),)


_gathered.defvjp(lambda x, *static: (_gathered(x, *static), None), _sum_pieces)


def _side_by_side(pieces: Array, k: int) -> Array:
    """Pieces [n, ...] of an array, cut along its axis k, as the array."""
    moved = jnp.moveaxis(pieces, 0, k)
    return moved.reshape(*moved.shape[:k], -1, *moved.shape[k + 2 :])


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
