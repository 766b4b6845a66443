"""SwiGLU's gate: the formula and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np

from t6jax.ops.swiglu import swiglu


def test_value_and_gradient_are_the_formula_s():
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        joined, weights = jnp.asarray(3 * random.standard_normal((2, 5, 14))), jnp.asarray(random.standard_normal((2, 5, 7)))
        formula = lambda x: jnp.sum(weights * jax.nn.silu(x[..., :7]) * x[..., 7:])
        want = jax.value_and_grad(formula)(joined)
        got = jax.value_and_grad(lambda x: jnp.sum(weights * swiglu(x)))(joined)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13), got, want)
