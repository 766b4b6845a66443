"""On an NVIDIA GPU: the kernel is the gradient of eq. 3.2, on odd numbers of heads, short and long,
the same bits every time.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.cta_groups import LARGEST
from pallas_kernels.attention.forward import attention_forward
from pallas_kernels.attention.gradient import attention_gradient
from t6jax.ops.attention import causal_attention, cudnn, mosaic_gpu

# sequences, tokens, heads: one block and many, fewer heads than multiprocessors, several of them
# for some and for all
SHAPES = [
    (1, 128, 1),
    (2, 256, 47),
    (3, 384, 1),
    (5, 640, 47),
    (4, 1024, 78),
    (7, 896, 29),
    (1, 4096, 3),
]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attention(query, key, value, scale):
    """With the gradient's kernel; the forward pass is cuDNN's."""
    return cudnn.attend(query, key, value, None, None, scale=scale)


def _forward(query, key, value, scale):
    out, lse = cudnn.attend_with_lse(query, key, value, None, None, scale=scale)
    return out, (query, key, value, None, None, out, lse)


def _backward(scale, residuals, grad):
    return mosaic_gpu.gradient(*residuals, grad, scale=scale)


attention.defvjp(_forward, _backward)


def draw(shape, dtype, size=1.0):
    return [
        size * jax.random.normal(key, (*shape, 64), dtype)
        for key in jax.random.split(jax.random.key(sum(shape)), 4)
    ]


def exact(query, key, value, scale):
    """Eq. 3.2 in float32; float64's difference from it is nothing beside bfloat16's."""
    logits = jnp.einsum("bthd,bshd->bhts", query, key, precision="highest") * scale
    seen = jnp.tril(jnp.ones(logits.shape[-2:], bool))
    p = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshd->bthd", p, value, precision="highest")


@functools.partial(jax.jit, static_argnames=("f", "scale"))
def gradients(f, query, key, value, grad, scale):
    out, back = jax.vjp(lambda *x: f(*x, scale), query, key, value)
    return back(grad.astype(out.dtype))


def distances(got, want):
    return [
        float(jnp.linalg.norm(x.astype(jnp.float32) - y) / jnp.linalg.norm(y))
        for x, y in zip(got, want, strict=True)
    ]


@pytest.mark.parametrize(
    "shape, dtype, scale",
    [
        *((shape, jnp.bfloat16, 64**-0.5) for shape in SHAPES),
        *((shape, jnp.float16, 64**-0.5) for shape in SHAPES[:2]),
        (SHAPES[1], jnp.bfloat16, 0.3),
    ],
)
def test_the_gradient_is_that_of_eq_3_2(shape, dtype, scale):
    arrays = draw(shape, dtype)
    got, again = gradients(attention, *arrays, scale), gradients(attention, *arrays, scale)
    want = [
        x.astype(jnp.float32)
        for x in gradients(exact, *(x.astype(jnp.float32) for x in arrays), scale)
    ]
    # P or dS, the output in delta, and the result are rounded once each: an ulp is eps, the root
    # mean square of rounding eps / sqrt(12); dS, with delta taken from dP, is of the size of what
    # was rounded
    assert max(distances(got, want)) < 4 * float(jnp.finfo(dtype).eps) / np.sqrt(12)
    assert all((x == y).all() for x, y in zip(got, again, strict=True))


@pytest.mark.parametrize("group", range(1, LARGEST + 1))
def test_any_number_of_multiprocessors_may_share_a_head(group):
    """Eleven columns, which most groups do not divide; 14 heads for three groups, or for four of
    one.
    """
    query, key, value, grad = draw((2, 1408, 7), jnp.bfloat16)
    want = gradients(exact, *(x.astype(jnp.float32) for x in (query, key, value, grad)), 0.125)
    out, lse = attention_forward(query, key, value, scale=0.125)
    gradient = jax.jit(
        functools.partial(attention_gradient, scale=0.125, sms=3 * group + 1, ctas_per_head=group)
    )
    got, again = (gradient(query, key, value, out, lse, grad) for _ in range(2))
    assert max(distances(got, want)) < 4 * float(jnp.finfo(jnp.bfloat16).eps) / np.sqrt(12)
    assert all((x == y).all() for x, y in zip(got, again, strict=True))


def test_weights_of_one_token_alone_and_of_all():
    """Scores of hundreds and scores of nothing overflow nowhere."""
    for size in (8.0, 1e-3):
        arrays = draw((2, 256, 5), jnp.bfloat16, size)
        want = [
            x.astype(jnp.float32)
            for x in gradients(exact, *(x.astype(jnp.float32) for x in arrays), 0.125)
        ]
        for x, y in zip(gradients(attention, *arrays, 0.125), want, strict=True):
            assert jnp.isfinite(x).all()
            assert jnp.abs(x.astype(jnp.float32) - y).max() < 2**-5 * jnp.abs(y).max()


@pytest.mark.parametrize("scale", [-0.3, 0])
def test_a_scale_may_be_negative_or_nothing(scale):
    arrays = draw((8, 256, 33), jnp.bfloat16)
    scaled = lambda q, k, v, scale: causal_attention(q, k, v, scale=scale)
    want = [
        x.astype(jnp.float32)
        for x in gradients(exact, *(x.astype(jnp.float32) for x in arrays), scale)
    ]
    for x, y in zip(gradients(scaled, *arrays, scale), want, strict=True):
        # the bound of the test above; without a scale, the gradients of queries and keys are
        # nothing
        assert jnp.linalg.norm(x.astype(jnp.float32) - y) <= 4 * 2**-7 / np.sqrt(
            12
        ) * jnp.linalg.norm(y)


def test_under_vmap_the_new_axis_is_one_of_sequences():
    """The kernel's call is then that of the joined sequences, and gives the same bits.

    Both sides are compiled whole and start from the same forward pass: cuDNN may plan that by the
    number of sequences, and XLA sums a program's products in another order than single operations.
    """
    query, key, value, grad = draw((6, 256, 7), jnp.bfloat16)
    arrays = query, key, value, *attention_forward(query, key, value, scale=0.125), grad
    gradient = functools.partial(attention_gradient, scale=0.125)
    apart = jax.jit(jax.vmap(gradient))(*(x.reshape(2, 3, *x.shape[1:]) for x in arrays))
    for x, y in zip(jax.jit(gradient)(*arrays), apart, strict=True):
        assert (x == y.reshape(x.shape)).all()


def test_is_what_training_runs_through():
    arrays = [jax.ShapeDtypeStruct((24, 1024, 78, 64), jnp.bfloat16)] * 3
    loss = lambda *x: causal_attention(*x).astype(jnp.float32).sum()
    assert (
        "attention_gradient" in jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).as_text()
    )
