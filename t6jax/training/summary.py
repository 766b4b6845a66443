"""What a run of a config is and needs, for --dry_run, the compiled step included."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from t6jax.parallel.mesh import make_mesh
from t6jax.training.plan import VIRTUAL, compile_for
from t6jax.training.settings import check
from t6jax.training.step import Trainer


def summary(config: Mapping[str, Any]) -> str:
    """What a run of this config is and needs, without building anything big or the devices it asks
    for.
    """
    m = check(config, plan=True)
    mesh = make_mesh(config["mesh"], plan=True)
    trainer = Trainer(config, m, mesh)
    attention = m.attention
    settings = m.to_dict()["attention"]
    keys = [key for key in settings if key not in ("name", "num_heads", "head_dim")]
    keys.sort(
        key=lambda key: (not key.startswith("rank_"), key != "rank_q")
    )  # R_Q, R_K, R_V, then the rest
    own = ", ".join(f"{key} {settings[key]}" for key in keys)
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
    width = jnp.dtype(m.dtype).itemsize
    lines = {
        "model": f"{attention.name}: L {m.num_layers}, d_model {m.d_model}, "
        f"h {attention.num_heads}, d_h {attention.head_dim}, {own}, "
        f"SwiGLU width {m.swiglu_width}, vocabulary {m.vocab_size}",
        "parameters": f"{m.parameter_count:,} ({_short(m.parameter_count)})",
        "batch": f"{rows} x {m.context_length} = {tokens:,} tokens a step, in "
        f"{config['accumulation_steps']} accumulation step(s)",
        "training": f"{config['steps']:,} steps, {_short(config['steps'] * tokens)} tokens in all",
        "optimizer": f"AdamW ({o['beta_1']}, {o['beta_2']}), "
        f"weight decay {o['weight_decay']}, clip {o['clip_norm']}, "
        f"warm-up {o['warmup_steps']:,} steps, cosine from {o['learning_rate']:g} to "
        f"{o['min_learning_rate']:g} "
        f"at step {o['decay_steps']:,}",
        "memory a device": " + ".join(f"{name} {b / 2**30:.2f}" for name, b in memory.items())
        + f" = {sum(memory.values()) / 2**30:.2f} GiB, and activations",
        "cache a token": f"{cached:,} numbers, {cached * width:,} bytes in {m.dtype}",
        "mesh": ", ".join(
            f"{axis} {mesh.shape[axis]}" for axis in ("data", "fsdp", "tensor", "sequence")
        )
        + f" (here: {jax.device_count()} x {jax.devices()[0].device_kind})",
    }
    plan = compile_for(config | {"mesh": dict(mesh.shape)}, mesh.size)
    gib = {name: plan[name] / 2**30 for name in ("arguments", "temporary")}
    lines["compiled"] = (
        f"for {mesh.size} x {plan['device']} in {plan['seconds']:.0f} s: {gib['temporary']:.2f} "
        "GiB a device of gradients, "
        f"activations and scratch, {sum(gib.values()):.2f} GiB with what is stored"
    )
    if plan["device"] == VIRTUAL:
        lines["compiled"] += "; a GPU needs about as much, or up to a quarter less"
    sent = [
        f"{count:,} {kind} over {' x '.join(axes)}, {size / 1e9:.3g} GB"
        for kind, axes, count, size in plan["collectives"]
    ]
    lines["sends a step"] = f"\n{'':<17}".join(sent) or "nothing"
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
