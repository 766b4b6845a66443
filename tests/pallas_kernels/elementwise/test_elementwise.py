"""Residual sums, norms, gates and the softmax's gradient in float64, the kernels interpreted on the
CPU.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.elementwise.add_norm import add_norm, add_norm_gradient
from pallas_kernels.elementwise.cross_entropy import cross_entropy_gradient
from pallas_kernels.elementwise.swiglu import swiglu_gradient
from tests.pallas_kernels.lowering import triton_kernels

HALF = 2**-8  # of a number, at most, is lost by rounding it to bfloat16
SLACK = 1e-4  # and by float32's sums and exponentials


def draw(*shape, count):
    random = np.random.default_rng(sum(shape))
    return [jnp.asarray(random.standard_normal(shape), jnp.bfloat16) for _ in range(count)]


def wide(*arrays):
    return [np.asarray(x, np.float64) for x in arrays]


def close(got, want, size):
    assert (np.abs(np.asarray(got, np.float64) - want) <= (HALF + SLACK) * size).all()


@pytest.mark.parametrize("width", [1, 100, 1600])
@pytest.mark.usefixtures("triton_interpreter")
def test_add_norm_is_the_sum_and_its_rms_norm(width):
    x, update = draw(5, width, count=2)
    total, normed = add_norm(x, update, 1e-6)
    np.testing.assert_array_equal(total, x + update)
    (t,) = wide(total)
    want = t / np.sqrt((t**2).mean(axis=1, keepdims=True) + 1e-6)
    close(normed, want, np.abs(want))


@pytest.mark.parametrize("width", [1, 100, 1600])
@pytest.mark.usefixtures("triton_interpreter")
def test_the_gradient_of_add_norm_is_that_of_the_formula(width):
    total, total_grad, normed_grad = draw(5, width, count=3)
    t, g_t, g_n = wide(total, total_grad, normed_grad)
    scale = 1 / np.sqrt((t**2).mean(axis=1, keepdims=True) + 1e-6)
    along = (g_n * t).mean(axis=1, keepdims=True) * scale**2
    got = add_norm_gradient(total, total_grad, normed_grad, 1e-6)
    size = np.abs(g_t) + scale * (
        np.abs(g_n) + np.abs(t) * (np.abs(g_n * t)).mean(axis=1, keepdims=True) * scale**2
    )
    close(got, g_t + scale * (g_n - t * along), size)


@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (5, 1023)])
@pytest.mark.usefixtures("triton_interpreter")
def test_the_gradient_of_swiglu_is_that_of_the_formula(shape):
    gate, up, grad = draw(*shape, count=3)
    a, b, g = wide(gate, up, grad)
    s = 1 / (1 + np.exp(-a))
    gate_grad, up_grad = swiglu_gradient(gate, up, grad)
    close(gate_grad, g * b * s * (1 + a * (1 - s)), np.abs(g * b * s) * (1 + np.abs(a * (1 - s))))
    close(up_grad, g * a * s, np.abs(g * a * s))


@pytest.mark.parametrize("width", [1, 61, 9001])
@pytest.mark.parametrize("scale", [1, 300])
@pytest.mark.usefixtures("triton_interpreter")
def test_cross_entropy_and_its_gradient_are_those_of_the_formula(width, scale):
    random = np.random.default_rng(width)
    logits = (scale * random.standard_normal((4, width))).astype(np.float32)
    targets = np.array([0, width - 1, width // 2, width // 3])
    losses, grad = cross_entropy_gradient(jnp.asarray(logits), jnp.asarray(targets), jnp.bfloat16)
    x = logits.astype(np.float64)
    lse = x.max(axis=1) + np.log(np.exp(x - x.max(axis=1, keepdims=True)).sum(axis=1))
    hit = targets[:, None] == np.arange(width)
    p = np.exp(x - lse[:, None])
    # float32 rounds the log-sum-exp, of the logits' size, a few times
    rounded = 4 * np.finfo(np.float32).eps * (np.abs(lse) + np.log(width) + 1)
    assert (np.abs(losses - (lse - x[hit])) <= rounded).all()
    bound = (HALF + SLACK) * np.abs(p - hit) + 2 * rounded[:, None] * p + np.finfo(np.float32).tiny
    assert (np.abs(np.asarray(grad, np.float64) - (p - hit)) <= bound).all()


def test_they_lower_for_an_nvidia_gpu():
    x = draw(5, 1600, count=3)
    logits, targets = jnp.zeros((3, 50304)), jnp.zeros(3, jnp.int32)
    assert triton_kernels(lambda x, y: add_norm(x, y, 1e-6), *x[:2]) == ["add_norm"]
    assert triton_kernels(lambda *x: add_norm_gradient(*x, 1e-6), *x) == ["add_norm_gradient"]
    assert triton_kernels(swiglu_gradient, *x) == ["swiglu_gradient"]
    assert triton_kernels(lambda *x: cross_entropy_gradient(*x, jnp.bfloat16), logits, targets) == [
        "cross_entropy_gradient"
    ]


@pytest.mark.usefixtures("triton_interpreter")
def test_under_vmap_the_mapped_axis_becomes_part_of_the_rows():
    gate, up, grad = draw(6, 100, count=3)
    mapped = [x.reshape(2, 3, 100) for x in (gate, up)]
    apart = jax.vmap(swiglu_gradient, in_axes=(0, 0, None))(*mapped, grad[:3])
    together = swiglu_gradient(gate, up, jnp.concatenate([grad[:3]] * 2))
    for x, y in zip(apart, together, strict=True):
        np.testing.assert_array_equal(x.reshape(y.shape), y)


@pytest.mark.usefixtures("triton_interpreter")
def test_no_rows_give_no_rows():
    x = jnp.zeros((0, 100), jnp.bfloat16)
    assert [y.shape for y in add_norm(x, x, 1e-6)] == [x.shape] * 2


def test_without_jax_triton_the_reason_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_triton", None)
    x = jnp.zeros((2, 100), jnp.bfloat16)
    for call in (lambda: add_norm(x, x, 1e-6), lambda: swiglu_gradient(x, x, x)):
        with pytest.raises(NotImplementedError, match="pip install jax-triton"):
            call()


@pytest.mark.usefixtures("triton_interpreter")
def test_what_the_kernels_do_not_take_is_said():
    x = jnp.zeros((2, 100))
    with pytest.raises(NotImplementedError, match="bfloat16 or float16, not float32"):
        add_norm(x, x, 1e-6)
    with pytest.raises(NotImplementedError, match="at most 16384 numbers"):
        add_norm(*[jnp.zeros((1, 20000), jnp.bfloat16)] * 2, 1e-6)
    with pytest.raises(NotImplementedError, match="must be float32, not bfloat16"):
        cross_entropy_gradient(x.astype(jnp.bfloat16), jnp.zeros(2, jnp.int32), jnp.bfloat16)
