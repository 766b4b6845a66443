"""What a run is and needs, for --dry_run: model, memory, time and the compiled step."""

import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from t6jax.config import ModelConfig, RunConfig
from t6jax.fields import keys_of
from t6jax.parallel.mesh import bytes_per_device
from t6jax.training.aot import VIRTUAL, compile_for
from t6jax.training.layout import mesh_for
from t6jax.training.metrics import PEAK_FLOPS, flops_per_token, peak_of
from t6jax.training.step import Trainer

# The share of a GPU's peak that the time of a run is estimated with: what a training step of a
# well-filled H100 or H200 reaches.
ASSUMED_MFU = 0.45
ESTIMATED_FOR = "H200"  # if the devices' own peak is not known


def dry_run_report(config: RunConfig) -> Iterator[str]:
    """Describes a run without allocating its arrays, and without the devices that it asks for.

    Yields lines, those that need no compilation first.

    Raises:
        InputError: training would refuse the config too, or its step does not compile.
    """
    m, o = config.model, config.optimizer
    mesh = mesh_for(config, plan=True)
    trainer = Trainer(config, mesh)
    state = trainer.abstract_arrays()
    params = bytes_per_device(state.params)
    memory = {
        "parameters": params,
        "optimizer": bytes_per_device(state.opt_state),
        "gradients": params,
    }
    cached = m.cached_numbers_per_token
    axes = ", ".join(f"{axis} {mesh.shape[axis]}" for axis in keys_of(type(config.mesh)))
    lines = {
        "model": _model(m),
        "parameters": f"{m.parameter_count:,} ({_short(m.parameter_count)})",
        "batch": f"{config.batch_size} x {m.context_length} = {config.tokens_per_step:,} tokens a "
        f"step, in {config.accumulation_steps} accumulation step(s)",
        "training": f"{config.steps:,} steps, {_short(config.steps * config.tokens_per_step)} "
        "tokens in all",
        "optimizer": f"AdamW ({o.beta_1}, {o.beta_2}), weight decay {o.weight_decay}, "
        f"clip {o.clip_norm}, warm-up {o.warmup_steps:,} steps, cosine from {o.learning_rate:g} "
        f"to {o.min_learning_rate:g} at step {config.decay_steps:,}",
        "time": _time(config, mesh.size),
        "memory a device": " + ".join(f"{name} {b / 2**30:.2f}" for name, b in memory.items())
        + f" = {sum(memory.values()) / 2**30:.2f} GiB, and activations",
        "cache a token": f"{cached:,} numbers, {cached * jnp.dtype(m.dtype).itemsize:,} bytes in "
        f"{m.dtype}",
        "mesh": f"{axes} (here: {jax.device_count()} x {jax.devices()[0].device_kind})",
    }
    yield from map(_line, lines.items())
    print(f"compiling the step for {mesh.size} device(s) ...", file=sys.stderr, flush=True)
    plan = compile_for(config_on(config, mesh.shape), mesh.size)
    gib = {name: plan[name] / 2**30 for name in ("arguments", "temporary")}
    compiled = (
        f"for {mesh.size} x {plan['device']} in {plan['seconds']:.0f} s: {gib['temporary']:.2f} "
        "GiB a device of gradients, "
        f"activations and scratch, {sum(gib.values()):.2f} GiB with what is stored"
    )
    if plan["device"] == VIRTUAL:
        compiled += "; a GPU needs about as much, or up to a quarter less"
    sent = [
        f"{count:,} {kind} over {' x '.join(axes)}, {size / 1e9:.3g} GB"
        for kind, axes, count, size in plan["collectives"]
    ]
    yield _line(("compiled", compiled))
    yield _line(("sends a step", f"\n{'':<17}".join(sent) or "nothing"))


def _line(item: tuple[str, str]) -> str:
    return f"{item[0]:<16} {item[1]}"


def config_on(config: RunConfig, mesh: dict[str, int]) -> RunConfig:
    """The config with these sizes of its mesh."""
    return RunConfig.from_dict(config.to_dict() | {"mesh": dict(mesh)})


def _model(m: ModelConfig) -> str:
    """The mechanism and its keys: R_Q, R_K, R_V first."""
    settings = m.to_dict()["attention"]
    keys = [key for key in settings if key not in ("name", "module", "num_heads", "head_dim")]
    keys.sort(key=lambda key: (not key.startswith("rank_"), key != "rank_q"))
    return (
        f"{m.attention.name}: L {m.num_layers}, d_model {m.d_model}, h {m.attention.num_heads}, "
        f"d_h {m.attention.head_dim}, {', '.join(f'{key} {settings[key]}' for key in keys)}, "
        f"SwiGLU width {m.swiglu_width}, vocabulary {m.vocab_size}"
    )


def _time(config: RunConfig, devices: int) -> str:
    """How long the run takes, by its FLOPs, the devices' peak and a stated MFU."""
    kind = jax.devices()[0].device_kind
    name, peak = (kind, peak_of(kind)) if peak_of(kind) else (ESTIMATED_FOR, None)
    peak = peak or PEAK_FLOPS[ESTIMATED_FOR]
    flops = flops_per_token(config.model, config.model.context_length)
    tokens_per_second = devices * peak * ASSUMED_MFU / flops
    seconds = config.steps * config.tokens_per_step / tokens_per_second
    return (
        f"about {_days(seconds)} on {devices} x {name} at an MFU of {ASSUMED_MFU:.0%} "
        f"({tokens_per_second:,.0f} tokens/s); {seconds * devices / 3600:,.1f} GPU hours"
    )


def _days(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _short(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f}"
