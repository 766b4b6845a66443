"""AdamW and its schedule are the paper's (section J.1)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax

from configs import xl_tpa
from t6jax.config import RunConfig
from t6jax.training.optimizer import applied_steps, learning_rate, make_optimizer

CONFIG = RunConfig.from_dict(xl_tpa.get_config().to_dict())
XL, DECAY = CONFIG.optimizer, CONFIG.decay_steps


def test_the_schedule_is_linear_then_cosine_then_constant():
    schedule = learning_rate(XL, DECAY)
    steps = np.array([0, 1, 1000, 2000, 51_000, 100_000, 150_000])
    halfway = (1e-4 + 1e-5) / 2
    want = [0, 1e-4 / 2000, 5e-5, 1e-4, halfway, 1e-5, 1e-5]
    # the schedule is computed in float32: a fraction of a cosine's range is off by a few epsilon
    np.testing.assert_allclose(
        [float(schedule(s)) for s in steps], want, rtol=0, atol=8 * 2**-24 * 1e-4
    )


def test_the_update_is_adamw_after_clipping_every_parameter_decaying():
    settings = dataclasses.replace(XL, warmup_steps=0, learning_rate=1.0, min_learning_rate=1.0)
    optimizer = make_optimizer(settings, 10)
    rng = np.random.default_rng(0)
    # gradients around Adam's epsilon, and far above it
    sizes = {"w": 10.0 ** np.linspace(-9, 0, 12).reshape(3, 4), "b": np.ones(4)}
    params = {k: rng.standard_normal(x.shape).astype(np.float32) for k, x in sizes.items()}
    state = optimizer.init(params)
    m = {k: np.zeros_like(x) for k, x in sizes.items()}
    v = {k: np.zeros_like(x) for k, x in sizes.items()}
    clipped = set()
    for step in range(1, 6):
        grads = {
            k: (rng.standard_normal(x.shape) * x / step**2).astype(np.float32)
            for k, x in sizes.items()
        }
        updates, state = optimizer.update(grads, state, params)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        clipped.add(norm > 1)
        for k in sizes:
            g = grads[k] * min(1, 1 / norm)
            m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.95 * v[k] + 0.05 * g * g
            direction = m[k] / (1 - 0.9**step) / (np.sqrt(v[k] / (1 - 0.95**step)) + 1e-8)
            # a few rounded operations; 1 - beta**step loses some bits of each
            want = -(direction + 0.1 * params[k])
            np.testing.assert_allclose(updates[k], want, rtol=2e-5, atol=2e-6)
        params = optax.apply_updates(params, updates)
    assert clipped == {True, False}


def test_the_schedule_goes_by_the_steps_that_were_applied():
    optimizer = make_optimizer(XL, DECAY)
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)
    for applied in range(3):
        assert applied_steps(state) == applied
        _, state = optimizer.update(params, state, params)
