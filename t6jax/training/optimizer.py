"""AdamW with warm-up and cosine decay (section J.1)."""

import optax
from jaxtyping import Array, Int

from t6jax.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, decay_steps: int) -> optax.Schedule:
    """lr * step / warmup_steps, then a cosine to min_learning_rate at decay_steps, constant after
    that.

    Args:
        decay_steps: RunConfig.decay_steps, for which the optimizer's key may stand at 0.
    """
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, decay_steps, config.min_learning_rate
    )


def applied_steps(opt_state: optax.OptState) -> Int[Array, ""]:
    """The steps that an optimizer of `make_optimizer` has applied, which its schedule goes by.

    Those that were skipped do not count.
    """
    of_schedule = lambda path, _: path[-1].tuple_name == optax.ScaleByScheduleState.__name__
    return optax.tree.get(opt_state, "count", filtering=of_schedule)


def make_optimizer(config: OptimizerConfig, decay_steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW; every parameter decays, as in the published code."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, decay_steps),
            b1=config.beta_1,
            b2=config.beta_2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        ),
    )
