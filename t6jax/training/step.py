"""The state of training, and the compiled step that advances it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Int, Key

from t6jax.config import ModelConfig
from t6jax.model import T6, abstract
from t6jax.ops.documents import model_arguments
from t6jax.training.optimizer import learning_rate, make_optimizer
from t6jax.training.sharding import batch_sharding, parameter_shardings, replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: of the next batch, counted from 0. params: the model's, a pure dict. key: for whatever draws at random."""

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
        self._config, self._model_config, self._document_start = config, model_config, document_start
        self._accumulation = config["accumulation_steps"]
        self._optimizer = make_optimizer(config["optimizer"])
        self._schedule = learning_rate(config["optimizer"])
        self.mesh = mesh
        self.graph, state = nnx.split(abstract(model_config))
        self.abstract_state = jax.eval_shape(self._create, jax.random.key(0))
        self.shardings = self._shardings(state)
        self.batch_sharding = batch_sharding(mesh)
        self.create: Callable[[Key[Array, ""]], TrainState] = jax.jit(self._create, out_shardings=self.shardings)
        self.step: Callable = jax.jit(
            self._step,
            in_shardings=(self.shardings, self.batch_sharding),
            out_shardings=(self.shardings, replicated(mesh)),
            donate_argnums=0,
        )

    def abstract_arrays(self) -> TrainState:
        """The state's shapes, dtypes and shardings, for restoring a checkpoint into."""
        place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
        return jax.tree.map(place, self.abstract_state, self.shardings)

    def _create(self, key: Key[Array, ""]) -> TrainState:
        init_key, train_key = jax.random.split(key)
        params = nnx.to_pure_dict(nnx.state(T6(self._model_config, rngs=nnx.Rngs(init_key))))
        return TrainState(jnp.zeros((), jnp.int32), params, self._optimizer.init(params), train_key)

    def _shardings(self, state: nnx.State) -> TrainState:
        everywhere = replicated(self.mesh)
        params = parameter_shardings(state, self.mesh, self._config["sharding"])
        opt_state = optax.tree.map_params(
            self._optimizer,
            lambda _, sharding: sharding,
            self.abstract_state.opt_state,
            params,
            transform_non_params=lambda _: everywhere,
        )
        return TrainState(everywhere, params, opt_state, everywhere)

    def _loss(self, params: dict[str, Any], windows: Int[Array, "B T+1"]) -> Float[Array, ""]:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            model, tokens = nnx.merge(self.graph, params), windows[:, :-1]
            return model.loss(tokens, windows[:, 1:], **model_arguments(tokens, self._document_start))

    def _step(self, state: TrainState, windows: Int[Array, "B T+1"]) -> tuple[TrainState, dict[str, Array]]:
        loss, grads = self._loss_and_grads(state.params, windows)
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "train_loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": self._schedule(state.step),
        }
        # a step whose numbers are not finite leaves parameters and optimizer as they were; where fuses into their update
        finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
        keep = lambda new, old: jnp.where(finite, new, old)
        params, opt_state = jax.tree.map(keep, (params, opt_state), (state.params, state.opt_state))
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    def _loss_and_grads(self, params: dict[str, Any], windows: Int[Array, "B T+1"]) -> tuple[Array, dict[str, Any]]:
        """Mean over the batch, taken accumulation_steps micro-batches after one another."""
        value_and_grad = jax.value_and_grad(self._loss)
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
