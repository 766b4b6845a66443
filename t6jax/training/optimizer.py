"""AdamW with warm-up and cosine decay (section J.1)."""

from collections.abc import Mapping
from typing import Any

import optax

from t6jax.errors import InputError


def learning_rate(config: Mapping[str, Any]) -> optax.Schedule:
    """lr * step / warmup_steps, then a cosine down to min_learning_rate at decay_steps, and that
    from there on.
    """
    c = config
    if not 0 <= c["warmup_steps"] < c["decay_steps"]:
        raise InputError(
            f"optimizer.warmup_steps={c['warmup_steps']} must be below "
            f"optimizer.decay_steps={c['decay_steps']}"
        )
    return optax.warmup_cosine_decay_schedule(
        0.0, c["learning_rate"], c["warmup_steps"], c["decay_steps"], c["min_learning_rate"]
    )


def make_optimizer(config: Mapping[str, Any]) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW; every parameter decays, as in the published code."""
    return optax.chain(
        optax.clip_by_global_norm(config["clip_norm"]),
        optax.adamw(
            learning_rate(config),
            b1=config["beta_1"],
            b2=config["beta_2"],
            eps=config["epsilon"],
            weight_decay=config["weight_decay"],
        ),
    )
