"""What differs between the config of a run's directory and the one that is to resume it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from t6jax.config.data import MixtureEntry
from t6jax.config.model import ModelConfig
from t6jax.config.run import RunConfig
from t6jax.config.urls import without_secrets
from t6jax.fields import keys_of

# What may change when a run resumes: none of it alters the losses of the steps to come, except by
# the order of sums.
CHANGEABLE = (
    *("steps", "accumulation_steps", "stop_after_not_finite", "profile"),
    *("log", "checkpoint", "validation", "mesh", "sharding", "model.remat"),
    *("data.num_workers", "model.attention.module"),
)


def differences(old: Mapping[str, Any], new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new) of all that differs, except what may change when a run resumes.

    Args:
        old: config.json of the run, as it is. A key that it lacks came later: the run did without
            it what the key's default does.
    """
    before, after = _flat(_defaults(new)) | _flat(old), _flat(without_secrets(new.to_dict()))
    for values in (before, after):  # 0 means steps, which may change
        decay = "optimizer.decay_steps"
        values[decay] = values.get(decay) or values.get("steps")
    return _changed(before, after)


def model_differences(old: Mapping[str, Any], new: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """As `differences`, for the section `model` alone: old is the one of config.json."""
    before, after = _flat(_defaults(new), "model.") | _flat(old, "model."), new.to_dict()
    return _changed(before, _flat(after, "model."))


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (before.get(key), after.get(key))
        for key in sorted({**before, **after})
        if before.get(key) != after.get(key) and not _may_change(key)
    }


def _may_change(key: str) -> bool:
    return any(key == c or key.startswith(c + ".") for c in CHANGEABLE)


def _defaults(values: Any) -> dict[str, Any]:
    """The defaults of an instance's keys, those of its sections included."""
    found = {}
    for name, key in keys_of(type(values)).items():
        value = getattr(values, name)
        if isinstance(value, dict):
            found[name] = {entry: _defaults(MixtureEntry()) for entry in value}
        elif dataclasses.is_dataclass(value):
            found[name] = _defaults(value)
        elif key.default is not dataclasses.MISSING:
            found[name] = key.default
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        )
    return flat
