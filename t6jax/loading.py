"""A run's model, read from its checkpoints."""

import pathlib

import jax
import orbax.checkpoint as ocp
from flax import nnx

from t6jax.config import ModelConfig
from t6jax.model import T6, abstract
from t6jax.runs import CHECKPOINTS, PARAMETERS, locate, read_model_config, restore_newest


def load(ckpt_dir: str | pathlib.Path) -> tuple[T6, ModelConfig]:
    """The model and its config from a run's directory (its newest readable checkpoint) or one
    step's.

    Raises InputError where there is none.
    """
    model, _ = load_step(ckpt_dir)
    return model, model.config


def load_step(ckpt_dir: str | pathlib.Path) -> tuple[T6, int]:
    """As `load`: the model, and the step whose checkpoint it is from."""
    workdir, steps = locate(ckpt_dir)
    config = read_model_config(workdir)
    graph, state = nnx.split(abstract(config))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)
    target = jax.tree.map(place, nnx.to_pure_dict(state))

    def restore(step: int) -> dict:
        path = (workdir / CHECKPOINTS / str(step) / PARAMETERS).absolute()
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, target)

    step, params = restore_newest(workdir, steps, restore)
    return nnx.merge(graph, params), step
