"""What a device uses of parameters that devices store in pieces: gathered, or fetched, before they
are used.

Parameters that take the same plan between the same devices travel together, as one array.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from t6jax.parallel.mesh import axis_size
from t6jax.parallel.placement import Placement, mesh_axis, shard_start


def gathered(variable: nnx.Variable, dtype: DTypeLike | None = None) -> Array:
    """What this device uses of a parameter, in a dtype (default: its own).

    Gathered in that dtype; the sums of its gradient over devices are taken in float32 (and rounded
    to that dtype where the gradient goes on to other devices).
    """
    x = variable[...]
    dtype = x.dtype if dtype is None else dtype
    if variable.get_metadata().get("placement") is None:
        return x.astype(dtype)
    state = nnx.State({"it": variable})
    (whole,), _ = _variables(LayerGather(state, dtype).gathered(state))
    return whole[...]


class LayerGather:
    """How the parameters of a layer come: those that take the same plan, between the same devices,
    as one array.

    One collective does for ten of a tenth of the size, each with a latency of its own.
    """

    def __init__(self, state: nnx.State, dtype: DTypeLike):
        """state: a layer's, to know its parameters by; its numbers are not looked at, and not
        kept.
        """
        self._dtype = jnp.dtype(dtype)
        variables, self._tree = _variables(state)
        self._variables = [
            v.replace(jax.ShapeDtypeStruct(x.shape, x.dtype))
            for v in variables
            for x in (v.get_value(),)
        ]
        groups: dict[Any, list[_GatherPlan]] = {}  # what needs no collective stays by itself
        for i, v in enumerate(self._variables):
            shape, dtype = v.get_value().shape, v.get_value().dtype
            plan = _GatherPlan.of(i, shape, v.get_metadata().get("placement"))
            groups.setdefault((plan.stages or i, dtype), []).append(plan)
        self._groups = list(groups.values())

    @property
    def is_gathered(self) -> bool:
        """Whether other devices store some of what this one uses."""
        return any(plan.steps for plans in self._groups for plan in plans)

    def gathered(self, state: nnx.State) -> nnx.State:
        """What this device uses of a layer, from what it stores: pack, gather and open, one behind
        the other.
        """
        return self.unpack(self.gather(self.pack(state)))

    def pack(self, state: nnx.State) -> list[Array]:
        """What this device stores of a layer, as it sends it."""
        arrays = [v[...] for v in _variables(state)[0]]
        return [
            self._packed([arrays[plan.number] for plan in plans], plans, 0)
            for plans in self._groups
        ]

    def gather(self, packed: list[Array]) -> list[Array]:
        """What it uses of the layer, as it arrives."""
        return [self._exchanged(x, plans) for x, plans in zip(packed, self._groups, strict=True)]

    def unpack(self, gathered: list[Array]) -> nnx.State:
        """The layer's parameters."""
        opened: list[nnx.Variable] = list(self._variables)
        for x, plans in zip(gathered, self._groups, strict=True):
            for plan, array in zip(
                plans, self._unpacked(x, plans, len(plans[0].steps) - 1), strict=True
            ):
                if plan.placement is not None:
                    array = plan.local_shard(array.astype(self._dtype))
                opened[plan.number] = opened[plan.number].replace(array)
        return jax.tree.unflatten(self._tree, opened)

    def _packed(self, arrays: list[Array], plans: list["_GatherPlan"], stage: int) -> Array:
        """The arrays side by side: flat, or, where something else goes to each of n devices, as n
        rows.
        """
        if not plans[0].steps:
            return arrays[0]
        return jnp.concatenate(
            [plan.cut(x, stage) for x, plan in zip(arrays, plans, strict=True)], axis=-1
        )

    def _exchanged(self, x: Array, plans: list["_GatherPlan"]) -> Array:
        for stage, step in enumerate(plans[0].steps):
            if stage:
                x = self._packed(self._unpacked(x, plans, stage - 1), plans, stage)
            if step.gather:
                x = _all_gather(x, step.axes, self._dtype, x.dtype)
            else:
                x = jax.lax.all_to_all(x.astype(self._dtype), step.axes, 0, 0, tiled=True)
        return x

    def _unpacked(self, x: Array, plans: list["_GatherPlan"], stage: int) -> list[Array]:
        """The arrays behind a stage, from a row of each device."""
        if not plans[0].steps:
            return [x]
        ends = list(itertools.accumulate(math.prod(plan.piece(stage)) for plan in plans))
        parts = jnp.split(x, ends[:-1], axis=1)
        return [
            _join(part.reshape(-1, *plan.piece(stage)), plan.steps[stage].k)
            for part, plan in zip(parts, plans, strict=True)
        ]


def _variables(state: nnx.State) -> tuple[list[nnx.Variable], Any]:
    return jax.tree.flatten(state, is_leaf=lambda v: isinstance(v, nnx.Variable))


class _Exchange(NamedTuple):
    """One exchange. gather: axis k is gathered over mesh axes; otherwise an all-to-all makes it
    whole and splits another.
    """

    gather: bool
    axes: tuple[str, ...]
    k: int


@dataclasses.dataclass(frozen=True)
class _GatherPlan:
    """From what is stored of a parameter to what is used.

    number: of the parameter. target: its axis that is split while it is used. shapes: before each
        step, and behind the last.
    """

    number: int
    placement: Placement | None
    target: int | None
    steps: tuple[_Exchange, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, number: int, shape: tuple[int, ...], p: Placement | None) -> "_GatherPlan":
        if p is None:
            return cls(number, None, None, (), (shape,))
        target = next((k for k, axis in enumerate(p.used) if axis), None)
        tensor_on = next((k for k, axes in enumerate(p.stored) if "tensor" in axes), None)
        steps = []
        # the axis that tensor is stored on comes last: by then the axis it goes to is whole
        for k in sorted(range(len(p.shape)), key=lambda k: k == tensor_on):
            axes = p.stored[k]
            if k == tensor_on == target:
                steps.append(_Exchange(True, axes[1:], k))
            elif k == tensor_on and target is not None:
                at = axes.index("tensor")
                steps += [
                    _Exchange(True, axes[at + 1 :], k),
                    _Exchange(False, ("tensor",), k),
                    _Exchange(True, axes[:at], k),
                ]
            else:
                steps.append(_Exchange(True, axes, k))
        steps = [
            step._replace(axes=tuple(axis for axis in step.axes if axis_size(axis) > 1))
            for step in steps
        ]
        steps = [step for step in steps if step.axes]
        shapes = [shape]
        for step in steps:
            after = list(shapes[-1])
            after[step.k] *= math.prod(map(axis_size, step.axes))
            if not step.gather and target is not None:
                after[target] = -(-after[target] // axis_size("tensor"))
            shapes.append(tuple(after))
        return cls(number, p, target, tuple(steps), tuple(shapes))

    @property
    def stages(self) -> tuple[tuple[bool, tuple[str, ...]], ...]:
        """What parameters that travel together have in common."""
        return tuple((step.gather, step.axes) for step in self.steps)

    def piece(self, stage: int) -> tuple[int, ...]:
        """The shape of what comes from each device."""
        shape, after = self.shapes[stage], self.shapes[stage + 1]
        return tuple(
            before if i == self.steps[stage].k else n
            for i, (before, n) in enumerate(zip(shape, after, strict=True))
        )

    def cut(self, x: Array, stage: int) -> Array:
        """What is sent of x: all of it to all, or a row to each."""
        if self.steps[stage].gather:
            return x.ravel()
        k, n = self.target, axis_size("tensor")
        assert k is not None, "only a parameter that is split while it is used is exchanged"
        x = _pad_to_shards(x, k)
        return jnp.moveaxis(x.reshape(*x.shape[:k], n, -1, *x.shape[k + 1 :]), k, 0).reshape(n, -1)

    def local_shard(self, x: Array) -> Array:
        """This device's part where a parameter is split over tensor while it is used, and not while
        it is stored.
        """
        p = self.placement
        if p is None or self.target is None or any("tensor" in axes for axes in p.stored):
            return x
        x = _pad_to_shards(x, self.target)
        width = x.shape[self.target] // axis_size("tensor")
        return jax.lax.dynamic_slice_in_dim(
            x, jax.lax.axis_index("tensor") * width, width, self.target
        )


def _pad_to_shards(x: Array, k: int) -> Array:
    """x with zeros behind axis k, up to a multiple of the tensor axis."""
    missing = -x.shape[k] % axis_size("tensor")
    return jnp.pad(x, [(0, missing if i == k else 0) for i in range(x.ndim)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _all_gather(x: Array, axes: tuple[str, ...], dtype: Any, own: Any) -> Array:
    """x of all devices along mesh axes, a row for each, in a dtype."""
    return jax.lax.all_gather(x.astype(dtype), axes)


def _reduce_scatter(axes: tuple[str, ...], dtype: Any, own: Any, _: None, g: Array) -> tuple[Array]:
    wide = jnp.promote_types(own, jnp.float32)
    return (jax.lax.psum_scatter(g.astype(wide), axes).astype(own),)


_all_gather.defvjp(lambda x, *static: (_all_gather(x, *static), None), _reduce_scatter)


def _join(pieces: Array, k: int) -> Array:
    """Pieces [n, ...] of an array, cut along its axis k, as the array."""
    moved = jnp.moveaxis(pieces, 0, k)
    return moved.reshape(*moved.shape[:k], -1, *moved.shape[k + 2 :])


def embedding_lookup(
    table: nnx.Variable, tokens: Int[Array, "B T"], dtype: DTypeLike
) -> Float[Array, "B T d_model"]:
    """The rows of a table ["vocab", "d_model"] for tokens, in a dtype.

    Looked up before the cast: the gradient of a frequent token is then a sum in the parameters'
    dtype.
    """
    rows = gathered(table)
    axis = mesh_axis(table, "vocab")
    if not axis:
        return rows[tokens].astype(dtype)
    here = tokens - shard_start(table, "vocab")
    found = rows.at[here].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    return jax.lax.psum(found.astype(dtype), axis)
