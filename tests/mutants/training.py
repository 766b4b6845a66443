"""Faults of training: the step, the optimizer, what is logged."""

from tests.mutants.table import Faults

STEP = "tests/training/test_step.py"
OPTIMIZER = "tests/training/test_optimizer.py"
METRICS = "tests/training/test_metrics.py"
FAILURES = (
    "tests/training/test_failures.py::test_a_step_that_is_not_finite_changes_nothing_but_the_step"
)

FAULTS = (
    Faults(
        "t6jax/training/optimizer.py",
        (OPTIMIZER,),
        (
            ("optax.clip_by_global_norm(config.clip_norm),", "optax.clip(config.clip_norm),"),
            ("b1=config.beta_1,", "b1=config.beta_2,"),
            ("b2=config.beta_2,", "b2=0.951,"),
            ("eps=config.epsilon,", "eps=1e-5,"),
            ("weight_decay=config.weight_decay,", "weight_decay=0.0,"),
            ("decay_steps, config.min_learning_rate", "decay_steps, 0.0"),
        ),
    ),
    Faults(
        "t6jax/training/step.py",
        (STEP,),
        (
            (
                "functools.partial(_loss, document_start=document_start)",
                "functools.partial(_loss, document_start=None)",
            ),
            (
                '"learning_rate": self._schedule(applied_steps(state.opt_state)),',
                '"learning_rate": self._schedule(state.step),',
                (FAILURES,),
            ),
            ('"grad_norm": optax.tree.norm(grads),', '"grad_norm": optax.tree.norm(updates),'),
            (
                "keep = lambda new, old: jnp.where(finite, new, old)",
                "keep = lambda new, old: new",
                (FAILURES,),
            ),
            (
                "jnp.all(jnp.isfinite(jnp.stack([*metrics.values()])))",
                "jnp.isfinite(loss)",
                (FAILURES,),
            ),
        ),
    ),
    Faults(
        "t6jax/training/metrics.py",
        (METRICS,),
        (
            ("if number <= step else []", "if number < step else []"),
            ('return f"{s // 60}m{s % 60:02d}s"', 'return f"{s // 60}m{s % 60}s"'),
        ),
    ),
)
