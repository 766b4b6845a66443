"""The state of training, and the compiled step that advances it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from t6jax.config import ModelConfig
from t6jax.model import T6, abstract
from t6jax.ops.documents import model_arguments
from t6jax.parallel import sequence
from t6jax.parallel.mesh import BATCH_AXES, MESH_AXES, TOKEN_AXES, batch_sharding, replicated
from t6jax.parallel.placement import partition_spec, placements
from t6jax.training.optimizer import learning_rate, make_optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: of the next batch, counted from 0. params: the model's, a pure dict. key: for whatever
    draws at random.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: optax.OptState
    key: Key[Array, ""]


class Trainer:
    """Everything compiled for one config and mesh: `create` the state, `step` it.

    graph: the model's structure; nnx.merge(graph, state.params) is the model.
    document_start: the token at which attention stops and positions restart; None: nowhere.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        model_config: ModelConfig,
        mesh: Mesh | AbstractMesh,
        document_start: int | None = None,
    ):
        self._config, self._model_config, self._document_start = (
            config,
            model_config,
            document_start,
        )
        self._accumulation = config["accumulation_steps"]
        self._optimizer = make_optimizer(config["optimizer"])
        self._schedule = learning_rate(config["optimizer"])
        self.mesh = mesh
        self.graph, _ = nnx.split(abstract(model_config))
        self.abstract_state = jax.eval_shape(self._create, jax.random.key(0))
        self._place(abstract(model_config))
        self.batch_sharding = batch_sharding(mesh)
        # (params, windows [B, T + 1], mask [B]) -> (nats of the unmasked rows' tokens, how many
        # tokens those are)
        self.loss_sums: Callable = jax.jit(
            self._loss_sums,
            in_shardings=(self.shardings.params, self.batch_sharding, self.batch_sharding),
            out_shardings=replicated(mesh),
        )
        self.create: Callable[[Key[Array, ""]], TrainState] = jax.jit(
            self._create, out_shardings=self.shardings
        )
        self.step: Callable = jax.jit(
            self._step,
            in_shardings=(self.shardings, self.batch_sharding),
            out_shardings=(self.shardings, replicated(mesh)),
            donate_argnums=0,
            # XLA's own matrix products, which it takes for what it can fuse into them, are slower
            # here than cuBLAS's and cost most of the compiler's time
            compiler_options={"xla_gpu_enable_triton_gemm": False}
            | _collective_pipelining(mesh.size > 1 and not model_config.unroll),
        )

    def abstract_arrays(self) -> TrainState:
        """The state's shapes, dtypes and shardings, for restoring a checkpoint into."""
        place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
        return jax.tree.map(place, self.abstract_state, self.shardings)

    def _create(self, key: Key[Array, ""]) -> TrainState:
        init_key, train_key = jax.random.split(key)
        params = nnx.to_pure_dict(nnx.state(T6(self._model_config, rngs=nnx.Rngs(init_key))))
        return TrainState(jnp.zeros((), jnp.int32), params, self._optimizer.init(params), train_key)

    def _place(self, model: T6) -> None:
        """Where parameters and optimizer state lie: `shardings`; and, in the model's structure,
        what a device uses of them.
        """
        c = self._model_config
        whole = ("heads", "kv_heads") if c.attention.mixes_heads else ()
        placed = placements(model, self.mesh, self._config["sharding"], whole)
        params = self.abstract_state.params
        self._specs = jax.tree.map(lambda x, p: partition_spec(p, x.ndim), params, placed)
        # the axes that a parameter's gradient is still to be summed over, when it lies where the
        # parameter is stored
        self._copies = jax.tree.map(
            lambda p: tuple(
                a
                for a in MESH_AXES
                if self.mesh.shape[a] > 1 and all(a not in axes for axes in p.stored)
            ),
            placed,
        )
        everywhere = replicated(self.mesh)
        of_params = jax.tree.map(lambda s: NamedSharding(self.mesh, s), self._specs)
        of_optimizer = optax.tree.map_params(
            self._optimizer,
            lambda _, sharding: sharding,
            self.abstract_state.opt_state,
            of_params,
            transform_non_params=lambda _: everywhere,
        )
        self.shardings = TrainState(everywhere, of_params, of_optimizer, everywhere)
        for path, variable in nnx.to_flat_state(nnx.state(model)):
            variable.set_metadata(
                "placement", functools.reduce(lambda tree, key: tree[key], path, placed)
            )
        self._placed_graph, _ = nnx.split(model)

    def _arguments(self, windows: Int[Array, "B T+1"]) -> tuple[Array, Array, dict[str, Array]]:
        """What the model takes: tokens, targets and the rest; where devices split the sequences,
        this device's.
        """
        tokens, targets = windows[:, :-1], windows[:, 1:]
        arguments = model_arguments(tokens, self._document_start)
        if sequence.sequence_shards() > 1:
            positions = {"positions": jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)}
            tokens, targets, arguments = sequence.local_tokens(
                (tokens, targets, positions | arguments)
            )
        return tokens, targets, arguments

    def _loss(
        self,
        params: dict[str, Any],
        windows: Int[Array, "B T+1"],
        graph: nnx.GraphDef | None = None,
    ) -> Float[Array, ""]:
        tokens, targets, arguments = self._arguments(windows)
        return nnx.merge(self.graph if graph is None else graph, params).loss(
            tokens, targets, **arguments
        )

    def _on_each_device(self, f: Callable, in_specs: Any, out_specs: Any) -> Callable:
        return jax.shard_map(
            f, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def _loss_sums(
        self, params: dict[str, Any], windows: Int[Array, "B T+1"], mask: Float[Array, "B"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        count = jnp.sum(mask) * (windows.shape[1] - 1)

        def total(graph, params, windows, mask):
            tokens, targets, arguments = self._arguments(windows)
            return jnp.sum(
                nnx.merge(graph, params).nats(tokens, targets, **arguments) * mask[:, None]
            )

        if self.mesh.size == 1:
            return total(self.graph, params, windows, mask), count
        on_device = lambda *a: jax.lax.psum(total(self._placed_graph, *a), TOKEN_AXES)
        rows = PartitionSpec(BATCH_AXES)
        return self._on_each_device(on_device, (self._specs, rows, rows), PartitionSpec())(
            params, windows, mask
        ), count

    def _step(
        self, state: TrainState, windows: Int[Array, "B T+1"]
    ) -> tuple[TrainState, dict[str, Array]]:
        loss, grads = self._loss_and_grads(state.params, windows)
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "train_loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": self._schedule(state.step),
        }
        # a step whose numbers are not finite leaves parameters and optimizer as they were; where
        # fuses into their update
        finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
        keep = lambda new, old: jnp.where(finite, new, old)
        params, opt_state = jax.tree.map(keep, (params, opt_state), (state.params, state.opt_state))
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    def _loss_and_grads(
        self, params: dict[str, Any], windows: Int[Array, "B T+1"]
    ) -> tuple[Array, dict[str, Any]]:
        """Mean over the batch, taken accumulation_steps micro-batches after one another."""
        if self.mesh.size == 1:
            return self._accumulated(self._loss, params, windows)

        def on_device(params, windows):
            # Differentiated on each device, this gives the gradient of the sum over all devices:
            # the mean over their tokens, what those along the tensor axis compute together counting
            # once for each of them.
            loss = lambda params, rows: (
                self._loss(params, rows, self._placed_graph) / self.mesh.size
            )
            loss, grads = self._accumulated(loss, params, windows)
            # once a step, whatever the number of micro-batches
            add = lambda grad, axes: jax.lax.psum(grad, axes) if axes else grad
            return jax.lax.psum(loss, MESH_AXES), jax.tree.map(add, grads, self._copies)

        specs = self._specs
        return self._on_each_device(
            on_device, (specs, PartitionSpec(BATCH_AXES)), (PartitionSpec(), specs)
        )(params, windows)

    def _accumulated(
        self, loss: Callable, params: dict[str, Any], windows: Int[Array, "B T+1"]
    ) -> tuple[Array, dict[str, Any]]:
        """A loss of parameters and rows, and its gradient: the mean over the micro-batches."""
        value_and_grad = jax.value_and_grad(loss)
        n = self._accumulation
        if n == 1:
            return value_and_grad(params, windows)
        # every n-th row goes to a micro-batch, so that each device's rows stay on it
        micro = windows.reshape(-1, n, windows.shape[-1]).swapaxes(0, 1)

        def add(total, rows):
            return jax.tree.map(jnp.add, total, value_and_grad(params, rows)), None

        zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(value_and_grad, params, micro[0]))
        total, _ = jax.lax.scan(add, zero, micro)
        return jax.tree.map(lambda x: x / n, total)


def _collective_pipelining(on: bool) -> dict[str, Any]:
    """XLA's options for a loop over the blocks, which begins to gather the next one's parameters
    while one runs, and finishes its gradients' sums beside the next.

    Without such a loop they do harm: in the one over micro-batches XLA computes blocks twice, to
    send early what they give.
    """
    mode = f"COLLECTIVE_PIPELINING_MODE_{'ON' if on else 'OFF'}"
    pipelined = {
        f"xla_gpu_pipeline_{kind}": mode for kind in ("all_gather", "reduce_scatter", "all_reduce")
    }
    # two copies of the loop's body: what is gathered for one is not copied over what the other uses
    return pipelined | {"xla_gpu_enable_while_loop_double_buffering": on}
