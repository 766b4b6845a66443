"""What can be checked without a GPU: that the kernel lowers for CUDA, and what is refused. Numbers:
tests/gpu.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.attention.forward import attention_forward, unsupported


def arrays(shape, dtype=jnp.bfloat16):
    return [jax.ShapeDtypeStruct(shape, dtype)] * 3


@pytest.mark.parametrize("shape", [(24, 1024, 78, 64), (1, 128, 1, 64), (3, 1792, 47, 64)])
def test_lowers_for_cuda(shape):
    attention = jax.jit(functools.partial(attention_forward, scale=0.125))
    assert (
        "mosaic_gpu"
        in attention.trace(*arrays(shape)).lower(lowering_platforms=("cuda",)).as_text()
    )
    out, lse = jax.eval_shape(attention, *arrays(shape))
    assert (out.shape, out.dtype) == (shape, jnp.bfloat16)
    assert (lse.shape, lse.dtype) == ((shape[0], shape[2], shape[1]), jnp.float32)


def chunked(tokens, keys):
    query, key = (jax.ShapeDtypeStruct((3, n, 47, 64), jnp.bfloat16) for n in (tokens, keys))
    return query, key, key, jax.ShapeDtypeStruct((2,), jnp.int32)


@pytest.mark.parametrize("tokens, keys", [(512, 1024), (512, 2048), (1536, 1536)])
def test_lowers_for_two_chunks_of_a_longer_sequence(tokens, keys):
    attention = jax.jit(functools.partial(attention_forward, scale=0.125))
    assert (
        "mosaic_gpu"
        in attention.trace(*chunked(tokens, keys)).lower(lowering_platforms=("cuda",)).as_text()
    )


@pytest.mark.parametrize("tokens, keys", [(128, 1024), (256, 1024), (512, 768), (512, 256)])
def test_chunks_are_whole_blocks_and_the_sequence_is_whole_chunks(tokens, keys):
    with pytest.raises(NotImplementedError, match="with chunks, T must be a multiple of"):
        jax.eval_shape(functools.partial(attention_forward, scale=0.125), *chunked(tokens, keys))


@pytest.mark.parametrize(
    "shape, dtype, reason",
    [
        ((2, 128, 3, 32), jnp.bfloat16, "D must be 64"),
        ((2, 100, 3, 64), jnp.bfloat16, "T must be a multiple of 128"),
        ((0, 128, 3, 64), jnp.bfloat16, "T must be a multiple"),
        ((2, 128, 3, 64), jnp.float16, "must be bfloat16"),
    ],
)
def test_says_what_it_does_not_take(shape, dtype, reason):
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(functools.partial(attention_forward, scale=1.0), *arrays(shape, dtype))


def test_keys_of_fewer_heads_are_not_taken():
    query, key = (jax.ShapeDtypeStruct((2, 128, heads, 64), jnp.bfloat16) for heads in (4, 2))
    assert "same shape" in unsupported(query, key, key)


@pytest.mark.parametrize("scale", [0, -0.1])
def test_a_scale_has_to_be_above_nothing(scale):
    with pytest.raises(ValueError, match="scale"):
        attention_forward(*[jnp.ones((1, 128, 1, 64), jnp.bfloat16)] * 3, scale=scale)
