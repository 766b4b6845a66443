"""RMSNorm and the sum that it reads, against the formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t6jax.ops.residual import FLOAT32_EPSILON, add_norm, rms_norm

EPSILON = np.finfo(np.float32).eps


def formula(x, epsilon, weight=1.0):
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("scale", [1.0, 1e-3])  # small enough for the epsilon to count
@pytest.mark.parametrize("epsilon", [EPSILON, 1e-5])
def test_it_is_the_formula(scale, epsilon):
    x, weight = scale * draw(3, 5, 16), 1 + draw(16, seed=1)
    for w in (None, weight):
        want = formula(x, epsilon, 1.0 if w is None else np.asarray(w, np.float64))
        np.testing.assert_allclose(rms_norm(x, float(epsilon), w), want, rtol=32 * EPSILON)


def test_a_blocks_epsilon_is_that_of_float32():
    assert FLOAT32_EPSILON == EPSILON
    x = 1e-4 * draw(2, 16)
    np.testing.assert_allclose(rms_norm(x), formula(x, EPSILON), rtol=32 * EPSILON)


def test_half_precision_is_normed_in_float32_and_rounded_once():
    x = (100 * draw(4, 256)).astype(jnp.float16)  # whose squares float16 does not hold
    want = formula(x, EPSILON).astype(np.float16)
    got = np.asarray(rms_norm(x))
    assert got.dtype == np.float16
    np.testing.assert_allclose(got.astype(float), want.astype(float), rtol=2 * 2**-11)


def test_the_sum_and_its_norm_with_their_gradient():
    x, update = draw(3, 16), draw(3, 16, seed=1)
    total, normed = add_norm(x, update)
    np.testing.assert_array_equal(total, x + update)
    np.testing.assert_allclose(normed, formula(x + update, EPSILON), rtol=32 * EPSILON)
    weights = draw(2, 3, 16, seed=2)
    loss = lambda f: lambda x, u: sum(jnp.vdot(w, y) for w, y in zip(weights, f(x, u), strict=True))
    plain = lambda x, u: (x + u, (x + u) / jnp.sqrt(jnp.mean((x + u) ** 2, -1, keepdims=True)))
    got, want = (jax.grad(loss(f), argnums=(0, 1))(x, update) for f in (add_norm, plain))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)
