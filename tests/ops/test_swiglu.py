"""SwiGLU's gate: the formula and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np

from t6jax.ops.swiglu import swiglu


def test_value_and_gradient_are_the_formula_s():
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        gate, up, weights = (jnp.asarray(3 * random.standard_normal((2, 5, 7))) for _ in range(3))
        formula = lambda gate, up: jax.nn.silu(gate) * up
        want, got = (
            jax.value_and_grad(lambda *x, f=f: jnp.sum(weights * f(*x)), argnums=(0, 1))(gate, up)
            for f in (formula, swiglu)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13), got, want)
