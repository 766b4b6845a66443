"""The state of training, and the compiled step that advances it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jaxtyping import Array, Float, Int, Key

from t6jax.config import RunConfig
from t6jax.evaluation.validation import loss_sums
from t6jax.model import T6, abstract, model_inputs
from t6jax.parallel.mesh import batch_sharding, replicated
from t6jax.parallel.prefetch import loop_prefetch_options
from t6jax.parallel.sharded import ShardedModel
from t6jax.training.optimizer import applied_steps, learning_rate, make_optimizer


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
        config: RunConfig,
        mesh: Mesh | AbstractMesh,
        document_start: int | None = None,
    ):
        self._model_config = model_config = config.model
        self._optimizer = make_optimizer(config.optimizer, config.decay_steps)
        self._schedule = learning_rate(config.optimizer, config.decay_steps)
        self.mesh = mesh
        whole = ("heads", "kv_heads") if model_config.attention.mixes_heads else ()
        sharded = ShardedModel(abstract(model_config), mesh, config.sharding.to_dict(), whole)
        self.graph = sharded.graph
        self.abstract_state = jax.eval_shape(self._create, jax.random.key(0))
        self.shardings = self._state_shardings(sharded.shardings)
        self.batch_sharding = batch_sharding(mesh)
        # (params, windows [B, T + 1], mask [B]) -> (nats of the unmasked rows' tokens, how many
        # tokens those are)
        self.loss_sums: Callable = jax.jit(
            sharded.sums(functools.partial(loss_sums, document_start=document_start)),
            in_shardings=(self.shardings.params, self.batch_sharding, self.batch_sharding),
            out_shardings=replicated(mesh),
        )
        self._loss_and_grads = sharded.mean_and_gradient(
            functools.partial(_loss, document_start=document_start), config.accumulation_steps
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
            | loop_prefetch_options(mesh.size > 1 and not model_config.unroll),
        )

    def abstract_arrays(self) -> TrainState:
        """The state's shapes, dtypes and shardings, for restoring a checkpoint into."""
        place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
        return jax.tree.map(place, self.abstract_state, self.shardings)

    def _create(self, key: Key[Array, ""]) -> TrainState:
        init_key, train_key = jax.random.split(key)
        params = nnx.to_pure_dict(nnx.state(T6(self._model_config, rngs=nnx.Rngs(init_key))))
        return TrainState(jnp.zeros((), jnp.int32), params, self._optimizer.init(params), train_key)

    def _state_shardings(self, params: dict[str, NamedSharding]) -> TrainState:
        """Where the state lies: the optimizer's moments next to their parameters, the rest
        everywhere.
        """
        everywhere = replicated(self.mesh)
        opt_state = optax.tree.map_params(
            self._optimizer,
            lambda _, sharding: sharding,
            self.abstract_state.opt_state,
            params,
            transform_non_params=lambda _: everywhere,
        )
        # a tree of the state's structure, of shardings instead of arrays
        return TrainState(everywhere, params, opt_state, everywhere)  # pyright: ignore[reportArgumentType]

    def _step(
        self, state: TrainState, windows: Int[Array, "B window"]
    ) -> tuple[TrainState, dict[str, Array]]:
        loss, grads = self._loss_and_grads(state.params, windows)
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "train_loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": self._schedule(applied_steps(state.opt_state)),
        }
        # a step whose numbers are not finite leaves parameters and optimizer as they were; where
        # fuses into their update
        finite = jnp.all(jnp.isfinite(jnp.stack([*metrics.values()])))
        keep = lambda new, old: jnp.where(finite, new, old)
        params, opt_state = jax.tree.map(keep, (params, opt_state), (state.params, state.opt_state))
        return TrainState(state.step + 1, params, opt_state, state.key), metrics


def _loss(
    model: T6, windows: Int[Array, "B window"], document_start: int | None
) -> Float[Array, ""]:
    """The mean loss of the tokens that this device has of the windows."""
    tokens, targets, arguments = model_inputs(windows, document_start)
    return model.loss(tokens, targets, **arguments)
