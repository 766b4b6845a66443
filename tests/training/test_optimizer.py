"""AdamW and its schedule are the paper's (section J.1)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax

from configs import xl_tpa
from t6jax.config import RunConfig
from t6jax.training.optimizer import learning_rate, make_optimizer

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
    settings = dataclasses.replace(XL, warmup_steps=0, learning_rate=1e-2, min_learning_rate=1e-2)
    optimizer = make_optimizer(settings, 10)
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.standard_normal((3, 4)), jnp.float32),
        "b": jnp.asarray(rng.standard_normal(4), jnp.float32),
    }
    state = optimizer.init(params)
    want = {k: np.asarray(v, np.float64) for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in want.items()}
    v = {k: np.zeros_like(x) for k, x in want.items()}
    for step in range(1, 4):
        grads = {k: rng.standard_normal(x.shape).astype(np.float32) * step for k, x in want.items()}
        updates, state = optimizer.update(
            {k: jnp.asarray(g) for k, g in grads.items()}, state, params
        )
        params = optax.apply_updates(params, updates)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        for k in want:
            g = grads[k] * min(1, 1 / norm)
            m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.95 * v[k] + 0.05 * g * g
            direction = m[k] / (1 - 0.9**step) / (np.sqrt(v[k] / (1 - 0.95**step)) + 1e-8)
            want[k] = want[k] - 1e-2 * (direction + 0.1 * want[k])
    for k in want:
        # a few rounded operations a step on numbers of a few units
        np.testing.assert_allclose(params[k], want[k], rtol=0, atol=3 * 16 * 2**-24 * 4)
