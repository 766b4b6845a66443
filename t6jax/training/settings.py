"""The config of a run as a whole: its checks, and its differences to another."""

import math
from collections.abc import Mapping
from typing import Any

from t6jax.config import ModelConfig
from t6jax.data.corpus import check_mixture
from t6jax.errors import InputError
from t6jax.parallel.mesh import BATCH_AXES, make_mesh
from t6jax.parallel.placement import parse_sharding_rules
from t6jax.training.profile import profiled_steps

# what may change when a run goes on: none of it alters the losses of the steps to come, but for the
# order of sums
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
            raise InputError(
                f"{name}.every_steps must be at least 1; got {config[name]['every_steps']}"
            )
    for name, key in (
        ("validation", "batch_size"),
        ("validation", "batches"),
        ("checkpoint", "keep"),
    ):
        if config[name][key] < 1:
            raise InputError(f"{name}.{key} must be at least 1; got {config[name][key]}")
    if config["data"]["path"] and config["data"]["source"]:
        raise InputError(
            f"data.path={config['data']['path']!r} and data.source={config['data']['source']!r} "
            "are both given: take the shards "
            "of the one, or with --config.data.path= the texts of the other"
        )
    check_mixture(config["data"])
    traced = profiled_steps(config["profile"])
    if traced and traced[-1] > config["steps"]:
        raise InputError(
            f"profile={config['profile']!r} must end at steps={config['steps']} or before"
        )
    if config["model"]["param_dtype"] != "float32":
        raise InputError(
            f"model.param_dtype must be float32 to train; got {config['model']['param_dtype']!r}"
        )
    if config["seed"] < 0:
        raise InputError(f"seed must be at least 0; got {config['seed']}")
    _check_division(config, make_mesh(config["mesh"], plan=plan).shape)
    parse_sharding_rules(config["sharding"])
    return ModelConfig.from_dict(config["model"])


def _check_division(config: Mapping[str, Any], mesh: Mapping[str, int]) -> None:
    """Raises InputError where rows or tokens do not divide: all that do not in one sentence, and
    values that do.
    """
    rows, parts, validation = (
        config["batch_size"],
        config["accumulation_steps"],
        config["validation"]["batch_size"],
    )
    split, chunks = math.prod(mesh[axis] for axis in BATCH_AXES), 2 * mesh["sequence"]
    length = config["model"]["context_length"]
    wrong, instead, more = [], {}, ""
    up = lambda n, of: -(-n // of) * of
    over = f"must be a multiple of mesh.data x mesh.fsdp = {split}"
    if rows % parts:
        wrong.append(f"batch_size={rows} must be a multiple of accumulation_steps={parts}")
    elif rows // parts % split:
        wrong.append(f"batch_size / accumulation_steps = {rows // parts} {over}")
    if wrong:
        a_device = up(rows, split) // split
        # as few parts as leave a device no more rows at a time than all devices together had
        fewest = next(
            n
            for n in range(1, a_device + 1)
            if a_device % n == 0 and a_device // n <= max(rows // parts, 1)
        )
        instead |= {"batch_size": up(rows, split), "accumulation_steps": fewest}
        more = (
            f" (accumulation_steps: any divisor of {a_device}; the higher, the less memory is "
            "needed)"
            if a_device > 1
            else ""
        )
    if validation % split:
        wrong.append(f"validation.batch_size={validation} {over}")
        instead["validation.batch_size"] = up(validation, split)
    if chunks > 2 and length % chunks:
        wrong.append(
            f"model.context_length={length} must be a multiple of 2 x mesh.sequence = {chunks}"
        )
        instead["model.context_length"] = up(length, chunks)
    if wrong:
        values = " ".join(f"--config.{key}={value}" for key, value in instead.items())
        raise InputError(f"{'; '.join(wrong)}. Take for instance {values}{more}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new) of all that differs, except what may change when a run goes on.

    A key that the old config does not have came later; its default is what the run did without it.
    """
    old, new = _flat(old), _flat(new)
    changed = {key: (old[key], new.get(key)) for key in old if old[key] != new.get(key)}
    fixed = {
        k: v
        for k, v in changed.items()
        if not any(k == c or k.startswith(c + ".") for c in CHANGEABLE)
    }
    return dict(sorted(fixed.items()))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        )
    return flat
