"""RoPE, and Theorem 3.1: rotating B factors is rotating Q, and scores depend on relative positions
only.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from t6jax import InputError
from t6jax.ops.rope import RoPE
from t6jax.ops.tensor_product import combine

EPSILON = np.finfo(np.float32).eps


def rotation_matrix(position: int, dim: int, base: float) -> np.ndarray:
    """Appendix H.5's block-diagonal rotation, in float64, features paired (i, i + D/2), acting on
    row vectors.
    """
    matrix = np.zeros((dim, dim))
    half = dim // 2
    for i in range(half):
        angle = position * base ** (-2 * i / dim)
        matrix[i, i] = matrix[i + half, i + half] = np.cos(angle)
        matrix[i + half, i] = np.sin(angle)
        matrix[i, i + half] = -np.sin(angle)
    return matrix


@pytest.mark.parametrize("dim", [2, 6, 64])
def test_rope_is_the_rotation_of_the_paper(dim):
    x = np.random.default_rng(0).standard_normal((1, 5, 3, dim)).astype(np.float32)
    positions = np.array([[0, 1, 2, 100, 1023]])
    rotated = RoPE()(jnp.asarray(x), jnp.asarray(positions))
    want = np.stack(
        [x[0, t] @ rotation_matrix(p, dim, 10000.0) for t, p in enumerate(positions[0])]
    )
    # the angle's own float32 rounding, position * epsilon, is what the error is made of
    np.testing.assert_allclose(rotated[0], want, rtol=0, atol=4 * EPSILON * 1023 * np.abs(x).max())


def test_theorem_3_1_rotating_b_factors_is_rotating_q():
    rng = np.random.default_rng(1)
    a, b = (jnp.asarray(rng.standard_normal((2, 7, 3, n)), jnp.float32) for n in (5, 8))
    positions = jnp.asarray(rng.integers(0, 1000, (2, 7)))
    rope = RoPE()
    rotated_factors, rotated_query = combine(a, rope(b, positions)), rope(combine(a, b), positions)
    # both round sums of R = 3 products and a rotation of 2; same angles on both sides
    bound = 8 * EPSILON * float(jnp.abs(rotated_query).max())
    np.testing.assert_allclose(rotated_factors, rotated_query, rtol=0, atol=bound)


@pytest.mark.parametrize("shift", [1, 17, 400])
def test_theorem_3_1_scores_depend_on_relative_positions_only(shift):
    rng = np.random.default_rng(2)
    q, k = (jnp.asarray(rng.standard_normal((1, 6, 4, 16)), jnp.float32) for _ in range(2))
    positions = jnp.arange(6)[None]
    rope = RoPE()
    scores = lambda p: jnp.einsum("bthd,bshd->bhts", rope(q, p), rope(k, p), precision="highest")
    # angles grow to position * 1, each rounded to epsilon of itself
    bound = 16 * EPSILON * (shift + 6) * 4
    np.testing.assert_allclose(scores(positions + shift), scores(positions), rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rotated_in_float32_and_rounded_once(dtype):
    x = jnp.asarray(np.random.default_rng(3).standard_normal((1, 6, 2, 16)), dtype)
    positions = jnp.array([[0, 1, 3, 100, 777, 4095]])
    got, want = RoPE()(x, positions), RoPE()(x.astype(jnp.float32), positions).astype(dtype)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(jnp.float32), want.astype(jnp.float32))


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("base", [float("inf"), float("nan"), 0, -1.0, "x"])
def test_a_base_that_is_none_is_named(base):
    with pytest.raises(InputError, match="RoPE's base must be a finite number, above 0"):
        RoPE(base)


def test_bfloat16_tables_round_the_cosines_and_sines_alone():
    x = jnp.ones((1, 3, 4), jnp.float32)
    positions = jnp.array([[0, 1, 5]])
    exact, rounded = RoPE()(x, positions), RoPE(table_dtype="bfloat16")(x, positions)
    difference = np.abs(np.asarray(exact - rounded))
    assert (
        0 < difference.max() <= 2 * 2**-8 / 2 * 1.0001
    )  # cos + sin, each off by half a bfloat16 ulp of at most 2^-8
    assert rounded.dtype == jnp.float32
