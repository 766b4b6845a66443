"""On an NVIDIA GPU: the kernel is eq. 3.2, with its log-sum-exps, for scores of every size; the
same bits every time.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.forward import MAX_SUM, attention_forward
from t6jax.ops.attention import causal_attention
from tests.gpu.test_attention_gradient import distances, gradients

# sequences, tokens, heads: half a block and many blocks, fewer than multiprocessors, several for
# some of them and for all
SHAPES = [
    (1, 128, 1),
    (2, 256, 47),
    (3, 384, 1),
    (5, 640, 47),
    (4, 1024, 78),
    (2, 1792, 40),
    (1, 4096, 3),
]


def draw(shape, size=1.0):
    return [
        size * jax.random.normal(key, (*shape, 64), jnp.bfloat16)
        for key in jax.random.split(jax.random.key(sum(shape)), 3)
    ]


@jax.jit
def exact(query, key, value, scale):
    """Eq. 3.2 and the log-sum-exps in float32."""
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    logits = jnp.einsum("bthd,bshd->bhts", query, key, precision="highest") * scale
    logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -jnp.inf)
    lse = jax.nn.logsumexp(logits, axis=-1)
    return jnp.einsum(
        "bhts,bshd->bthd", jnp.exp(logits - lse[..., None]), value, precision="highest"
    ), lse


def check(arrays, scale):
    ours = jax.jit(functools.partial(attention_forward, scale=scale))
    (out, lse), again = ours(*arrays), ours(*arrays)
    want_out, want_lse = exact(*arrays, scale)
    # P and the output are rounded once each: an ulp is eps, the root mean square of rounding eps /
    # sqrt(12)
    assert distances([out], [want_out])[0] < 2 * float(jnp.finfo(jnp.bfloat16).eps) / np.sqrt(12)
    # sums of 64 products, rounded 64 times in an order that is not the formula's; exp2 and log2 are
    # good to 2^-22
    largest = jnp.max(jnp.linalg.norm(arrays[0].astype(jnp.float32), axis=-1)) * jnp.max(
        jnp.linalg.norm(arrays[1].astype(jnp.float32), axis=-1)
    )
    assert jnp.abs(lse - want_lse).max() < 64 * 2**-24 * scale * largest + 2**-18
    assert (out == again[0]).all() and (lse == again[1]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_is_eq_3_2(shape):
    check(draw(shape), 64**-0.5)


@pytest.mark.parametrize("size, scale", [(1e-3, 0.125), (3.0, 0.3), (8.0, 0.125), (30.0, 1.0)])
def test_scores_of_nothing_and_of_thousands(size, scale):
    """The last two are heavier than one shift carries, in most rows."""
    check(draw((2, 640, 5), size), scale)


def test_one_key_far_heavier_than_the_diagonal_in_one_head_of_many():
    query, key, value = draw((3, 1024, 47))
    query, key = query.at[..., 0].set(4.0), key.at[1, 3, 30, 0].set(200.0)  # e^100 times the others
    assert 100 > np.log(MAX_SUM), "so that the second way is taken"
    check([query, key, value], 0.125)


def test_what_is_not_a_number_stays_in_its_sequence_and_head():
    query, key, value = draw((2, 512, 3))
    out, lse = attention_forward(query, key.at[1, 7, 2].set(jnp.nan), value, scale=0.125)
    want = attention_forward(query, key, value, scale=0.125)
    touched = np.zeros((2, 512, 3), bool)
    touched[1, 7:, 2] = True
    assert (np.isnan(np.asarray(out, np.float32)).all(-1) == touched).all()
    assert (np.isnan(np.asarray(lse)) == touched.swapaxes(1, 2)).all()
    assert (np.asarray(out)[~touched] == np.asarray(want[0])[~touched]).all()


def test_with_the_gradients_kernel_behind_it():
    arrays = draw((4, 1024, 78))
    grad = jax.random.normal(jax.random.key(9), arrays[0].shape, jnp.bfloat16)
    both = lambda *x: causal_attention(*x[:3], scale=x[3], implementation="mosaic_gpu")
    ours = gradients(both, *arrays, grad, 0.125)
    want = gradients(lambda *x: exact(*x)[0], *(x.astype(jnp.float32) for x in arrays), grad, 0.125)
    # as in test_attention_gradient.py
    assert max(distances(ours, want)) < 4 * float(jnp.finfo(jnp.bfloat16).eps) / np.sqrt(12)


def test_under_vmap_the_new_axis_is_one_of_sequences():
    arrays = draw((6, 256, 7))
    f = functools.partial(attention_forward, scale=0.125)
    apart = jax.jit(jax.vmap(f))(*(x.reshape(2, 3, *x.shape[1:]) for x in arrays))
    for x, y in zip(f(*arrays), apart, strict=True):
        assert (x == y.reshape(x.shape)).all()


def test_is_what_models_run_through():
    arrays = [jax.ShapeDtypeStruct((24, 1024, 78, 64), jnp.bfloat16)] * 3
    assert "attention_forward" in jax.jit(causal_attention).lower(*arrays).as_text()
