"""What can be checked without a GPU: that every class of shapes lowers for CUDA, and what is
refused. Numbers: tests/gpu.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.decode import flash_tpa
from pallas_kernels.decode.cache_layout import CacheLayout
from tests.pallas_kernels.oracle import rotation


def lower(
    layout, batch=3, capacity=200, N=1, R_Q=6, dtype=jnp.bfloat16, lengths=jnp.int32, **options
):
    array = jax.ShapeDtypeStruct
    if R_Q:
        query = (
            array((batch, N, R_Q, layout.heads), dtype),
            array((batch, N, R_Q, layout.dim_k), dtype),
        )
    else:
        query = array((batch, N, layout.heads, layout.dim_k), dtype)
    rows = array((batch, capacity, *layout.row_shape), dtype)
    constants = {}
    if not layout.stores_a:
        constants["a"] = (
            array((layout.rank_k, layout.heads), dtype),
            array((layout.rank_v, layout.heads), dtype),
        )
    if not layout.stores_b:
        constants["b"] = array((capacity, layout.b_width), dtype)
    decode = jax.jit(functools.partial(flash_tpa.decode, layout=layout, **options))
    return (
        decode.trace(query, rows, array((batch,), lengths), **constants)
        .lower(lowering_platforms=("cuda",))
        .as_text()
    )


@pytest.mark.parametrize(
    "sizes, options",
    [
        ((32, 1, 1, 64, 64), dict(R_Q=16, return_lse=True)),
        ((34, 2, 2, 64, 64), dict(N=2)),
        ((47, 2, 2, 64, 64), dict(batch=40)),
        ((78, 2, 2, 64, 64), dict(R_Q=0, dtype=jnp.float16)),
        ((5, 3, 1, 32, 128), dict(N=3, capacity=77)),
        ((128, 1, 3, 128, 32), dict(R_Q=17)),
        ((1, 1, 2, 128, 128), dict(batch=1)),
        ((34, 2, 2, 64, 64, False), dict(N=2)),
        ((34, 2, 2, 64, 64, True, False), {}),
        ((34, 2, 2, 64, 64, True, True, True), {}),
        ((47, 2, 2, 64, 64, True, True, True), dict(rotation=rotation(64), N=2)),
        ((34, 2, 1, 32, 128), dict(rotation=rotation(32, "bfloat16"))),
        ((22, 2, 2, 64, 64, False, True, True), dict(rotation=rotation(64), R_Q=0)),
        ((128, 3, 3, 128, 128, True, True, True), dict(rotation=rotation(128))),
        ((47, 2, 2, 64, 64, True, True, False, 2), {}),
        ((22, 2, 2, 64, 64, False, True, False, 2), {}),
    ],
)
def test_lowers_for_cuda(sizes, options):
    assert lower(CacheLayout(*sizes), **options).count("mosaic_gpu") >= 2


@pytest.mark.parametrize(
    "sizes, options, reason",
    [
        ((129, 1, 1, 64, 64), {}, "128 heads"),
        ((8, 1, 1, 48, 64), {}, "D and E"),
        ((8, 1, 1, 64, 64), dict(dtype=jnp.float32), "bfloat16 or float16"),
    ],
)
def test_says_what_it_does_not_take(sizes, options, reason):
    with pytest.raises(NotImplementedError, match=reason):
        lower(CacheLayout(*sizes), **options)


def test_rows_of_another_layout_are_an_error():
    layout = CacheLayout(32, 1, 1, 64, 64)
    with pytest.raises(ValueError, match="end in \\[192\\] numbers"):
        query, rows = jnp.zeros((1, 1, 32, 64)), jnp.zeros((1, 8, 100), jnp.bfloat16)
        flash_tpa.decode(query, rows, jnp.zeros((1,), jnp.int32), layout)
