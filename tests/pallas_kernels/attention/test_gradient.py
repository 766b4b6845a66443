"""What can be checked without a GPU: that the kernel lowers for CUDA, and what is refused. Numbers:
tests/gpu.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.attention.gradient import attention_gradient, unsupported


def arrays(shape, dtype=jnp.bfloat16):
    dense = jax.ShapeDtypeStruct(shape, dtype)
    return (
        dense,
        dense,
        dense,
        dense,
        jax.ShapeDtypeStruct((shape[0], shape[2], shape[1]), jnp.float32),
        dense,
    )


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((24, 1024, 78, 64), jnp.bfloat16),
        ((1, 128, 1, 64), jnp.float16),
        ((3, 640, 47, 64), jnp.bfloat16),
        ((1, 16384, 47, 64), jnp.bfloat16),
    ],
)
def test_lowers_for_cuda(shape, dtype):
    gradient = jax.jit(functools.partial(attention_gradient, scale=0.125))
    assert (
        "mosaic_gpu"
        in gradient.trace(*arrays(shape, dtype)).lower(lowering_platforms=("cuda",)).as_text()
    )


@pytest.mark.parametrize("tokens, keys", [(512, 1024), (256, 2048), (768, 768), (4096, 16384)])
def test_lowers_for_two_chunks_of_a_longer_sequence(tokens, keys):
    query, _, _, out, lse, grad = arrays((3, tokens, 47, 64))
    key = jax.ShapeDtypeStruct((3, keys, 47, 64), jnp.bfloat16)
    gradient = jax.jit(functools.partial(attention_gradient, scale=0.125))
    traced = gradient.trace(query, key, key, out, lse, grad, jax.ShapeDtypeStruct((2,), jnp.int32))
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert [x.shape for x in traced.out_info] == [query.shape, key.shape, key.shape]


@pytest.mark.parametrize(
    "shape, dtype, reason",
    [
        ((2, 128, 3, 32), jnp.bfloat16, "D must be 64"),
        ((2, 100, 3, 64), jnp.bfloat16, "T must be a multiple of 128"),
        ((0, 128, 3, 64), jnp.bfloat16, "T must be a multiple"),
        ((2, 128, 3, 64), jnp.float32, "all bfloat16 or all float16"),
    ],
)
def test_says_what_it_does_not_take(shape, dtype, reason):
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(functools.partial(attention_gradient, scale=1.0), *arrays(shape, dtype))


@pytest.mark.parametrize("group", [0, 3])
def test_a_group_of_more_than_there_are_columns_is_refused(group):
    with pytest.raises(ValueError, match="ctas_per_head must be 1 to 2"):
        jax.eval_shape(
            functools.partial(attention_gradient, scale=1.0, ctas_per_head=group),
            *arrays((1, 256, 3, 64)),
        )


def test_keys_of_fewer_heads_are_not_taken():
    query, key = (jax.ShapeDtypeStruct((2, 128, heads, 64), jnp.bfloat16) for heads in (4, 2))
    assert "same shape" in unsupported(query, key, key)
