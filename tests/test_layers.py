"""SwiGLU: padded or not, the formula."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t6jax.layers import TILE, SwiGLU, pad_columns


def test_columns_of_zeros_fill_up_wide_odd_weights_and_no_others():
    shape = lambda *s: pad_columns(jnp.ones(s)).shape
    assert shape(3, 4266) == (3, 4352)
    assert shape(3, 4352) == (3, 4352)
    assert shape(3, 85) == (3, 85)
    assert float(pad_columns(jnp.ones((3, 1030))).sum()) == 3 * 1030


def test_padding_changes_neither_output_nor_gradients(monkeypatch):
    width = 8 * TILE + 5
    mlp = SwiGLU(6, width, dtype="float32", param_dtype="float32", rngs=nnx.Rngs(0))
    mlp.w_3[...] = jax.random.normal(jax.random.key(0), (width, 6))
    graph, state = nnx.split(mlp)
    x = jax.random.normal(jax.random.key(1), (1, 7, 6))
    results = []
    for padded in (True, False):
        run = lambda state, x: jnp.sum(nnx.merge(graph, state)(x) ** 2)
        monkeypatch.setattr("t6jax.layers.worth_copying_weights", lambda x, padded=padded: padded)
        assert ("pad[" in str(jax.make_jaxpr(run)(state, x))) is padded
        results.append(jax.value_and_grad(run, argnums=(0, 1))(state, x))
    # sums of some thousand float32 terms
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=4096 * 6e-8 * np.abs(b).max()),
        *results,
    )


def test_the_mlp_is_section_3_5s_formula():
    mlp = SwiGLU(6, 16, dtype="float32", param_dtype="float32", rngs=nnx.Rngs(0))
    assert not mlp.w_3[...].any(), "it starts at zero, as published"
    mlp.w_3[...] = jax.random.normal(jax.random.key(0), (16, 6))
    x = jax.random.normal(jax.random.key(1), (2, 3, 6))
    w_1, w_2, w_3, y = (np.asarray(w[...], np.float64) for w in (mlp.w_1, mlp.w_2, mlp.w_3, x))
    gate = y @ w_1
    want = (gate / (1 + np.exp(-gate)) * (y @ w_2)) @ w_3
    # sums of 6 and of 16 terms
    np.testing.assert_allclose(mlp(x), want, rtol=0, atol=64 * 1.2e-7 * np.abs(want).max())
