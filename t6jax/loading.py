"""A run's model, read from its checkpoints."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from t6jax.config import ModelConfig, model_differences
from t6jax.errors import InputError
from t6jax.model import T6, abstract
from t6jax.runs import (
    CHECKPOINTS,
    CONFIG,
    PARAMETERS,
    locate,
    read_checksums,
    read_model_config,
    restore_newest,
)


def load(ckpt_dir: str | pathlib.Path) -> tuple[T6, ModelConfig]:
    """The model and its config from a run's directory (its newest readable checkpoint) or one
    step's.

    Raises InputError where there is none.
    """
    model, _ = load_step(ckpt_dir)
    return model, model.config


def load_step(ckpt_dir: str | pathlib.Path) -> tuple[T6, int]:
    """As `load`: the model, and the step whose checkpoint it is from.

    Raises InputError also where the model is not the one that config.json says.
    """
    workdir, steps = locate(ckpt_dir)
    config = read_model_config(workdir)
    graph, state = nnx.split(abstract(config))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)
    target = jax.tree.map(place, nnx.to_pure_dict(state))

    def restore(step: int) -> dict:
        folder = (workdir / CHECKPOINTS / str(step)).absolute()
        if sums := read_checksums(folder):
            sums.verify(folder, within=[f"{PARAMETERS}/"])
            _refuse_another_model(workdir, step, sums.about["config"]["model"], config)
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder / PARAMETERS, target)

    step, params = restore_newest(workdir, steps, restore)
    return nnx.merge(graph, params), step


def _refuse_another_model(
    workdir: pathlib.Path, step: int, saved: Mapping[str, Any], config: ModelConfig
) -> None:
    if changed := model_differences(saved, config):
        listed = "; ".join(f"{key} is {new!r}, not {old!r}" for key, (old, new) in changed.items())
        raise InputError(
            f"{workdir / CONFIG} is not the config that step {step} was trained with ({listed}): "
            "write the old values back"
        )
