"""The training loss: what the textbook formula gives, gradients too, in one slice or several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t6jax.ops.cross_entropy import cross_entropy, mean_cross_entropy


@pytest.mark.parametrize("slices", [1, 2, 6])
def test_loss_and_gradients_are_those_of_the_textbook_formula(slices):
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, table = (
            jnp.asarray(random.standard_normal((3, 6, 8))),
            jnp.asarray(random.standard_normal((11, 8))),
        )
        targets = jnp.asarray(random.integers(0, 11, (3, 6)))
        textbook = lambda x, table: (
            7 * jnp.mean(cross_entropy(jnp.einsum("btd,vd->btv", x, table), targets))
        )
        ours = lambda x, table: 7 * mean_cross_entropy(x, table, targets, slices)
        want, got = (jax.value_and_grad(f, argnums=(0, 1))(x, table) for f in (textbook, ours))
        assert ours(x, table) == got[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13), got, want)


def test_the_table_s_gradient_is_summed_in_its_own_precision():
    """A float32 table under bfloat16 hidden states: nothing of 4098 equal terms is lost, of whose
    two slices' sums, 1024.5, bfloat16 holds none.
    """
    x, table = jnp.ones((1, 4098, 1), jnp.bfloat16), jnp.zeros((2, 1), jnp.float32)
    grad = jax.grad(mean_cross_entropy, argnums=1)(x, table, jnp.zeros((1, 4098), jnp.int32), 2)
    np.testing.assert_array_equal(grad, [[-0.5], [0.5]])
