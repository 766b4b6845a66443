"""A model on a mesh: where its parameters are stored, and functions that every device runs."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from t6jax.parallel.mesh import BATCH_AXES, MESH_AXES, TOKEN_AXES
from t6jax.parallel.placement import Placement, partition_spec, placements


class ShardedModel:
    """A model whose parameters the devices of a mesh store by sharding rules.

    Functions of the model run under jax.shard_map: each device calls them with a model that knows
    the placement of its parameters (t6jax.parallel.gather collects what the device uses of them)
    and with the device's rows of the batch. On a mesh of one device they are called as they are.

    Attributes:
        mesh: the devices.
        graph: the model's structure; nnx.merge(graph, params) is the model.
        shardings: where each parameter is stored, a pure dict of NamedShardings.
    """

    def __init__(
        self,
        model: nnx.Module,
        mesh: Mesh | AbstractMesh,
        rules: Mapping[str, str],
        whole: tuple[str, ...] = (),
    ):
        """Places the parameters.

        Args:
            model: with shapes in place of arrays.
            mesh: the devices.
            rules: name of a parameter's axis -> mesh axes, as the config's `sharding` gives them.
            whole: names of axes that are not split while they are used.
        """
        self.mesh = mesh
        self.graph, state = nnx.split(model)
        placed: Any = placements(model, mesh, rules, whole)
        self._specs = jax.tree.map(
            lambda x, p: partition_spec(p, x.ndim), nnx.to_pure_dict(state), placed
        )
        self.shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), self._specs)
        self._unsummed_axes = jax.tree.map(self._axes_left_to_sum, placed)
        model = nnx.merge(self.graph, state)
        for path, variable in nnx.to_flat_state(nnx.state(model)):
            variable.set_metadata(
                "placement", functools.reduce(lambda tree, key: tree[key], path, placed)
            )
        self._placed_graph, _ = nnx.split(model)

    def _axes_left_to_sum(self, placement: Placement) -> tuple[str, ...]:
        """The mesh axes along which devices store the same of a parameter: gathering leaves its
        gradient summed over all others.
        """
        split = {axis for axes in placement.stored for axis in axes}
        return tuple(a for a in MESH_AXES if self.mesh.shape[a] > 1 and a not in split)

    def sums(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Sums over the tokens of a whole batch.

        Args:
            f: (model, *rows) -> sums over the tokens that a device has of those rows.

        Returns:
            (params, *rows) -> the same sums over the tokens of all devices.
        """
        if self.mesh.size == 1:
            return lambda params, *rows: f(nnx.merge(self.graph, params), *rows)

        def on_device(params: Any, *rows: Array) -> Any:
            return jax.lax.psum(f(nnx.merge(self._placed_graph, params), *rows), TOKEN_AXES)

        def summed(params: Any, *rows: Array) -> Any:
            in_specs = (self._specs, *[PartitionSpec(BATCH_AXES)] * len(rows))
            return self._on_each_device(on_device, in_specs, PartitionSpec())(params, *rows)

        return summed

    def mean_and_gradient(
        self, loss: Callable[[Any, Int[Array, "B window"]], Float[Array, ""]], micro_batches: int
    ) -> Callable[[Any, Int[Array, "B window"]], tuple[Float[Array, ""], Any]]:
        """A loss and its gradient, the means over a whole batch.

        Args:
            loss: (model, rows) -> the mean over the tokens that a device has of those rows.
            micro_batches: that the rows are taken in, one after another.

        Returns:
            (params, rows) -> (the mean over the tokens of all devices, its gradient, stored as the
            parameters are).
        """
        if self.mesh.size == 1:
            whole = lambda params, rows: loss(nnx.merge(self.graph, params), rows)
            return functools.partial(_accumulated, whole, micro_batches)

        def on_device(params: Any, rows: Int[Array, "B window"]) -> tuple[Float[Array, ""], Any]:
            # Differentiated on each device, this gives the gradient of the sum over all devices:
            # the mean over their tokens, where those along the tensor axis, which compute the same
            # loss together, count once each.
            def share(params: Any, rows: Int[Array, "B window"]) -> Float[Array, ""]:
                return loss(nnx.merge(self._placed_graph, params), rows) / self.mesh.size

            value, grads = _accumulated(share, micro_batches, params, rows)
            # once a step, whatever the number of micro-batches
            add = lambda grad, axes: jax.lax.psum(grad, axes) if axes else grad
            return jax.lax.psum(value, MESH_AXES), jax.tree.map(add, grads, self._unsummed_axes)

        return self._on_each_device(
            on_device, (self._specs, PartitionSpec(BATCH_AXES)), (PartitionSpec(), self._specs)
        )

    def _on_each_device(self, f: Callable, in_specs: Any, out_specs: Any) -> Callable:
        return jax.shard_map(
            f, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )


def _accumulated(
    loss: Callable, micro_batches: int, params: Any, rows: Int[Array, "B window"]
) -> tuple[Float[Array, ""], Any]:
    """A loss of parameters and rows, and its gradient: the means over the micro-batches."""
    value_and_grad = jax.value_and_grad(loss)
    if micro_batches == 1:
        return value_and_grad(params, rows)
    # every n-th row goes to a micro-batch, so that each device's rows stay on it
    micro = rows.reshape(-1, micro_batches, rows.shape[-1]).swapaxes(0, 1)

    def add(total: Any, rows: Int[Array, "b window"]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, value_and_grad(params, rows)), None

    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(value_and_grad, params, micro[0]))
    total, _ = jax.lax.scan(add, zero, micro)
    return jax.tree.map(lambda x: x / micro_batches, total)
