"""The config of a run as a whole: its checks, its differences to another, its summary for --dry_run."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from t6jax.config import ModelConfig
from t6jax.data.tokenizers import TOKENIZERS
from t6jax.errors import InputError
from t6jax.training.sharding import BATCH_AXES, make_mesh
from t6jax.training.step import Trainer

# what may change when a run goes on: none of it alters the losses of the steps to come
CHANGEABLE = ("steps", "log", "checkpoint", "validation", "mesh", "sharding", "data.num_workers", "model.remat")


def check(config: Mapping[str, Any]) -> ModelConfig:
    """The model's config; raises InputError for values that cannot work together."""
    for key in ("steps", "batch_size", "accumulation_steps"):
        if config[key] < 1:
            raise InputError(f"{key} must be at least 1; got {config[key]}")
    for name in ("log", "validation", "checkpoint"):
        if config[name]["every_steps"] < 1:
            raise InputError(f"{name}.every_steps must be at least 1; got {config[name]['every_steps']}")
    for name, key in (("validation", "batch_size"), ("validation", "batches"), ("checkpoint", "keep")):
        if config[name][key] < 1:
            raise InputError(f"{name}.{key} must be at least 1; got {config[name][key]}")
    if config["data"]["tokenizer"] not in TOKENIZERS:
        raise InputError(f"data.tokenizer must be one of {', '.join(TOKENIZERS)}; got {config['data']['tokenizer']!r}")
    rows, parts = config["batch_size"], config["accumulation_steps"]
    if rows % parts:
        raise InputError(f"batch_size={rows} must be a multiple of accumulation_steps={parts}")
    mesh = make_mesh(config["mesh"])
    split = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if rows // parts % split:
        raise InputError(
            f"batch_size / accumulation_steps = {rows // parts} must be a multiple of mesh.data x mesh.fsdp = {split}"
        )
    return ModelConfig.from_dict(config["model"])


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new) of all that differs, except what may change when a run goes on."""
    old, new = _flat(old), _flat(new)
    changed = {key: (old.get(key), new.get(key)) for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    fixed = {k: v for k, v in changed.items() if not any(k == c or k.startswith(c + ".") for c in CHANGEABLE)}
    return dict(sorted(fixed.items()))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def summary(config: Mapping[str, Any]) -> str:
    """What a run of this config is and needs, without building anything big."""
    m = check(config)
    mesh = make_mesh(config["mesh"])
    trainer = Trainer(config, m, mesh)
    attention = m.attention
    ranks = "".join(f", {k} {v}" for k, v in m.to_dict()["attention"].items() if k.startswith("rank"))
    o, rows = config["optimizer"], config["batch_size"]
    tokens = rows * m.context_length
    state, shardings = trainer.abstract_state, trainer.shardings
    params = _bytes_a_device(state.params, shardings.params)
    memory = {
        "parameters": params,
        "optimizer": _bytes_a_device(state.opt_state, shardings.opt_state),
        "gradients": params,
    }
    cached = m.cached_numbers_per_token
    dense = 2 * attention.num_heads * attention.head_dim * m.num_layers
    width = np.dtype(jax.numpy.dtype(m.dtype)).itemsize
    lines = {
        "model": f"{attention.name}: L {m.num_layers}, d_model {m.d_model}, h {attention.num_heads}, "
        f"d_h {attention.head_dim}{ranks}, SwiGLU width {m.mlp_width}, vocabulary {m.vocab_size}",
        "parameters": f"{m.parameter_count:,} ({_short(m.parameter_count)})",
        "batch": f"{rows} x {m.context_length} = {tokens:,} tokens a step, in {config['accumulation_steps']} "
        f"accumulation step(s)",
        "training": f"{config['steps']:,} steps, {_short(config['steps'] * tokens)} tokens in all",
        "optimizer": f"AdamW ({o['beta_1']}, {o['beta_2']}), weight decay {o['weight_decay']}, clip {o['clip_norm']}, "
        f"warm-up {o['warmup_steps']:,} steps, cosine from {o['learning_rate']:g} to {o['min_learning_rate']:g} "
        f"at step {o['decay_steps']:,}",
        "memory a device": " + ".join(f"{name} {b / 2**30:.2f}" for name, b in memory.items())
        + f" = {sum(memory.values()) / 2**30:.2f} GiB, activations not counted",
        "cache a token": f"{cached:,} numbers ({cached * width:,} bytes in {m.dtype}); dense keys and values of as many "
        f"heads would be {dense:,}, {dense / cached:.1f} times as much",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        + f" ({jax.device_count()} x {jax.devices()[0].device_kind})",
    }
    return "\n".join(f"{name:<16} {text}" for name, text in lines.items())


def _bytes_a_device(arrays: Any, shardings: Any) -> int:
    def one(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(one, arrays, shardings)))


def _short(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f}"
