"""Parameters gathered before they are used: from what each device stores to what it uses.

Parameters with the same plan between the same devices are sent together, as one array.
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
    """What this device uses of a parameter.

    Args:
        variable: a parameter, with a `placement` if devices store it in shards.
        dtype: that it is gathered and returned in, default the parameter's.

    Its gradient is summed over devices in float32, and rounded to the dtype if it is sent on along
    another mesh axis.
    """
    x = variable[...]
    dtype = x.dtype if dtype is None else dtype
    if variable.get_metadata().get("placement") is None:
        return x.astype(dtype)
    layer = nnx.State({"parameter": variable})
    (whole,), _ = _variables(LayerGather(layer, dtype).gathered(layer))
    return whole[...]


class LayerGather:
    """Gathers the parameters of a layer: those with the same plan as one array.

    One collective replaces ten of a tenth of the size, each of which would add its latency.
    """

    def __init__(self, state: nnx.State, dtype: DTypeLike):
        """Plans the gathering.

        Args:
            state: a layer's parameters. Shapes, dtypes and placements are read, not values.
            dtype: that parameters are sent and used in.
        """
        self._dtype = jnp.dtype(dtype)
        variables, self._tree = _variables(state)
        self._variables = [
            v.replace(jax.ShapeDtypeStruct(x.shape, x.dtype))
            for v in variables
            for x in (v.get_value(),)
        ]
        groups: dict[Any, list[_GatherPlan]] = {}  # one without stages is a group by itself
        for i, v in enumerate(self._variables):
            shape, dtype = v.get_value().shape, v.get_value().dtype
            plan = _GatherPlan.of(i, shape, v.get_metadata().get("placement"))
            groups.setdefault((plan.collectives or i, dtype), []).append(plan)
        self._groups = list(groups.values())

    @property
    def is_gathered(self) -> bool:
        """Whether other devices store some of what this one uses."""
        return any(plan.stages for plans in self._groups for plan in plans)

    def gathered(self, state: nnx.State) -> nnx.State:
        """What this device uses of a layer's parameters, from what it stores of them."""
        return self.unpack(self.gather(self.pack(state)))

    def pack(self, state: nnx.State) -> list[Array]:
        """The arrays that this device sends, from what it stores: one for each plan."""
        arrays = [v[...] for v in _variables(state)[0]]
        return [
            self._packed([arrays[plan.number] for plan in plans], plans, 0)
            for plans in self._groups
        ]

    def gather(self, packed: list[Array]) -> list[Array]:
        """The arrays that it receives: one for each plan."""
        return [self._exchanged(x, plans) for x, plans in zip(packed, self._groups, strict=True)]

    def unpack(self, gathered: list[Array]) -> nnx.State:
        """What this device uses of the layer's parameters, from the arrays it received."""
        opened: list[nnx.Variable] = list(self._variables)
        for x, plans in zip(gathered, self._groups, strict=True):
            for plan, array in zip(
                plans, self._unpacked(x, plans, len(plans[0].stages) - 1), strict=True
            ):
                if plan.placement is not None:
                    array = plan.local_shard(array.astype(self._dtype))
                opened[plan.number] = opened[plan.number].replace(array)
        return jax.tree.unflatten(self._tree, opened)

    def _packed(self, arrays: list[Array], plans: list["_GatherPlan"], stage: int) -> Array:
        """The arrays as one: flat before an all-gather, n rows before an all-to-all with n
        devices.
        """
        if not plans[0].stages:
            return arrays[0]
        return jnp.concatenate(
            [plan.flat(x, stage) for x, plan in zip(arrays, plans, strict=True)], axis=-1
        )

    def _exchanged(self, x: Array, plans: list["_GatherPlan"]) -> Array:
        for number, stage in enumerate(plans[0].stages):
            if number:
                x = self._packed(self._unpacked(x, plans, number - 1), plans, number)
            if stage.gather:
                x = _all_gather(x, stage.axes, self._dtype, x.dtype)
            else:
                x = jax.lax.all_to_all(x.astype(self._dtype), stage.axes, 0, 0, tiled=True)
        return x

    def _unpacked(self, x: Array, plans: list["_GatherPlan"], stage: int) -> list[Array]:
        """The arrays after a stage, from the rows that the devices sent."""
        if not plans[0].stages:
            return [x]
        ends = list(itertools.accumulate(math.prod(plan.sent_shape(stage)) for plan in plans))
        columns = jnp.split(x, ends[:-1], axis=1)
        return [
            _join(sent.reshape(-1, *plan.sent_shape(stage)), plan.stages[stage].k)
            for sent, plan in zip(columns, plans, strict=True)
        ]


def _variables(state: nnx.State) -> tuple[list[nnx.Variable], Any]:
    return jax.tree.flatten(state, is_leaf=lambda v: isinstance(v, nnx.Variable))


class _Stage(NamedTuple):
    """One collective of a plan.

    Attributes:
        gather: whether it is an all-gather of axis k. Otherwise it is an all-to-all, which makes
            axis k whole and splits another.
        axes: the mesh axes it runs over.
        k: an axis of the parameter.
    """

    gather: bool
    axes: tuple[str, ...]
    k: int


@dataclasses.dataclass(frozen=True)
class _GatherPlan:
    """The collectives from what is stored of a parameter to what is used.

    Attributes:
        number: of the parameter in its layer.
        placement: None for a parameter that no device needs others for.
        target: the parameter's axis that is split while it is used, if any.
        stages: the collectives, in order.
        shapes: of the parameter on one device before each stage, and after the last.
    """

    number: int
    placement: Placement | None
    target: int | None
    stages: tuple[_Stage, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, number: int, shape: tuple[int, ...], p: Placement | None) -> "_GatherPlan":
        if p is None:
            return cls(number, None, None, (), (shape,))
        target = next((k for k, axis in enumerate(p.used) if axis), None)
        tensor_on = next((k for k, axes in enumerate(p.stored) if "tensor" in axes), None)
        stages = []
        # The axis that tensor splits in storage comes last: by then the target axis is whole.
        for k in sorted(range(len(p.shape)), key=lambda k: k == tensor_on):
            axes = p.stored[k]
            if k == tensor_on == target:
                stages.append(_Stage(True, axes[1:], k))
            elif k == tensor_on and target is not None:
                at = axes.index("tensor")
                stages += [
                    _Stage(True, axes[at + 1 :], k),
                    _Stage(False, ("tensor",), k),
                    _Stage(True, axes[:at], k),
                ]
            else:
                stages.append(_Stage(True, axes, k))
        stages = [
            stage._replace(axes=tuple(axis for axis in stage.axes if axis_size(axis) > 1))
            for stage in stages
        ]
        stages = [stage for stage in stages if stage.axes]
        shapes = [shape]
        for stage in stages:
            after = list(shapes[-1])
            after[stage.k] *= math.prod(map(axis_size, stage.axes))
            if not stage.gather and target is not None:
                after[target] = -(-after[target] // axis_size("tensor"))
            shapes.append(tuple(after))
        return cls(number, p, target, tuple(stages), tuple(shapes))

    @property
    def collectives(self) -> tuple[tuple[bool, tuple[str, ...]], ...]:
        """(all-gather or all-to-all, mesh axes) of each stage: the same for parameters that are
        sent together.
        """
        return tuple((stage.gather, stage.axes) for stage in self.stages)

    def sent_shape(self, stage: int) -> tuple[int, ...]:
        """The shape of what each device sends to another in a stage."""
        shape, after = self.shapes[stage], self.shapes[stage + 1]
        return tuple(
            before if i == self.stages[stage].k else n
            for i, (before, n) in enumerate(zip(shape, after, strict=True))
        )

    def flat(self, x: Array, stage: int) -> Array:
        """x as a stage sends it: flat before an all-gather, a row for each device before an
        all-to-all.
        """
        if self.stages[stage].gather:
            return x.ravel()
        k, n = self.target, axis_size("tensor")
        assert k is not None, "only a parameter that is split while it is used is exchanged"
        x = _pad_to_shards(x, k)
        return jnp.moveaxis(x.reshape(*x.shape[:k], n, -1, *x.shape[k + 1 :]), k, 0).reshape(n, -1)

    def local_shard(self, x: Array) -> Array:
        """This device's shard of a parameter that tensor splits while it is used, but not while it
        is stored; other parameters unchanged.
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
    """x with zeros at the end of axis k, up to a multiple of the tensor axis's size."""
    missing = -x.shape[k] % axis_size("tensor")
    return jnp.pad(x, [(0, missing if i == k else 0) for i in range(x.ndim)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _all_gather(x: Array, axes: tuple[str, ...], dtype: Any, stored_dtype: Any) -> Array:
    """x of all devices along mesh axes, a row for each, in a dtype; stored_dtype: x's."""
    return jax.lax.all_gather(x.astype(dtype), axes)


def _all_gather_forward(x: Array, *static: Any) -> tuple[Array, None]:
    return _all_gather(x, *static), None


def _reduce_scatter(
    axes: tuple[str, ...], dtype: Any, stored_dtype: Any, _: None, g: Array
) -> tuple[Array]:
    wide = jnp.promote_types(stored_dtype, jnp.float32)
    return (jax.lax.psum_scatter(g.astype(wide), axes).astype(stored_dtype),)


_all_gather.defvjp(_all_gather_forward, _reduce_scatter)


def _join(shards: Array, k: int) -> Array:
    """Shards [n, ...] of an array, split along its axis k, as the array."""
    moved = jnp.moveaxis(shards, 0, k)
    return moved.reshape(*moved.shape[:k], -1, *moved.shape[k + 2 :])


def embedding_lookup(
    table: nnx.Variable, tokens: Int[Array, "B T"], dtype: DTypeLike
) -> Float[Array, "B T d_model"]:
    """The rows of a table ["vocab", "d_model"] for tokens, in a dtype.

    They are looked up before the cast, so that the gradient of a frequent token is summed in the
    parameters' dtype.
    """
    rows = gathered(table)
    axis = mesh_axis(table, "vocab")
    if not axis:
        return rows[tokens].astype(dtype)
    here = tokens - shard_start(table, "vocab")
    found = rows.at[here].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    return jax.lax.psum(found.astype(dtype), axis)
