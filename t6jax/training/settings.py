"""The config of a run as a whole: its checks, and its differences to another."""

import math
from collections.abc import Mapping
from typing import Any

from t6jax.config import ModelConfig
from t6jax.data.corpus import check_mixture
from t6jax.errors import InputError
from t6jax.parallel import BATCH_AXES
from t6jax.training.profile import profiled_steps
from t6jax.training.sharding import make_mesh, parse_rules

# what may change when a run goes on: none of it alters the losses of the steps to come, but for the order of sums
CHANGEABLE = (
    *("steps", "accumulation_steps", "stop_after_not_finite", "profile"),
    *("log", "checkpoint", "validation", "mesh", "sharding", "model.remat"),
    "data.num_workers",
)


def check(config: Mapping[str, Any], *, plan: bool = False) -> ModelConfig:
    """The model's config; raises InputError for values that cannot work together.

    plan: the mesh may ask for devices that are not there.
    """
    for key in ("steps", "batch_size", "accumulation_steps", "stop_after_not_finite"):
        if config[key] < 1:
            raise InputError(f"{key} must be at least 1; got {config[key]}")
    for name in ("log", "validation", "checkpoint"):
        if config[name]["every_steps"] < 1:
            raise InputError(f"{name}.every_steps must be at least 1; got {config[name]['every_steps']}")
    for name, key in (("validation", "batch_size"), ("validation", "batches"), ("checkpoint", "keep")):
        if config[name][key] < 1:
            raise InputError(f"{name}.{key} must be at least 1; got {config[name][key]}")
    if config["data"]["path"] and config["data"]["source"]:
        raise InputError(
            f"data.path={config['data']['path']!r} and data.source={config['data']['source']!r} are both given: take the shards "
            "of the one, or with --config.data.path= the texts of the other"
        )
    check_mixture(config["data"])
    profiled_steps(config["profile"])
    rows, parts = config["batch_size"], config["accumulation_steps"]
    if rows % parts:
        raise InputError(f"batch_size={rows} must be a multiple of accumulation_steps={parts}")
    if config["model"]["param_dtype"] != "float32":
        raise InputError(f"model.param_dtype must be float32 to train; got {config['model']['param_dtype']!r}")
    if config["seed"] < 0:
        raise InputError(f"seed must be at least 0; got {config['seed']}")
    mesh = make_mesh(config["mesh"], plan=plan)
    split = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if rows // parts % split:
        raise InputError(
            f"batch_size / accumulation_steps = {rows // parts} must be a multiple of mesh.data x mesh.fsdp = {split}"
        )
    if config["validation"]["batch_size"] % split:
        raise InputError(
            f"validation.batch_size={config['validation']['batch_size']} must be a multiple of mesh.data x mesh.fsdp = {split}"
        )
    chunks = 2 * mesh.shape["sequence"]
    if chunks > 2 and config["model"]["context_length"] % chunks:
        raise InputError(
            f"model.context_length={config['model']['context_length']} must be a multiple of 2 x mesh.sequence = {chunks}"
        )
    parse_rules(config["sharding"])
    return ModelConfig.from_dict(config["model"])


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new) of all that differs, except what may change when a run goes on.

    A key that the old config does not have came later; its default is what the run did without it.
    """
    old, new = _flat(old), _flat(new)
    changed = {key: (old[key], new.get(key)) for key in old if old[key] != new.get(key)}
    fixed = {k: v for k, v in changed.items() if not any(k == c or k.startswith(c + ".") for c in CHANGEABLE)}
    return dict(sorted(fixed.items()))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
