"""The GPU kernels against Algorithm 1 in float64, on a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.decode import cache_layout, flash_tpa
from pallas_kernels.decode.cache_layout import CacheLayout
from tests.gpu.conftest import needs_hopper
from tests.pallas_kernels.decode.check import check
from tests.pallas_kernels.oracle import make, oracle, rotation


@needs_hopper
@pytest.mark.parametrize(
    "sizes, options",
    [
        ((1, 1, 1, 64, 64), dict(N=1)),
        ((5, 3, 1, 32, 128), dict(N=3)),
        ((32, 1, 1, 64, 64), dict(R_Q=16)),
        ((32, 1, 1, 64, 64), dict(R_Q=0, N=8)),
        ((34, 2, 2, 64, 64), dict(N=2)),
        ((47, 2, 2, 64, 64), dict()),
        ((61, 2, 2, 64, 64), dict(R_Q=0)),
        ((78, 2, 2, 64, 64), dict(N=4)),
        ((78, 2, 2, 64, 64), dict(R_Q=0, dtype=jnp.float16)),
        ((128, 1, 3, 128, 32), dict(R_Q=17)),
        ((128, 3, 3, 128, 128), dict(N=5)),
        ((16, 2, 1, 64, 32), dict(N=6, dtype=jnp.float16)),
        ((48, 1, 2, 32, 64), dict(R_Q=1, N=7)),
        ((34, 2, 2, 64, 64, False), dict(N=2)),  # non-contextual A
        ((32, 3, 1, 32, 64, False), dict(R_Q=0)),
        ((47, 2, 2, 64, 64, True, False), dict()),  # non-contextual B
        ((61, 2, 2, 64, 64, True, True, True), dict(R_Q=0)),  # shared B
        ((22, 2, 2, 64, 64, False, True, True), dict()),  # non-contextual A, shared B
        (
            (47, 2, 2, 64, 64, True, True, True),
            dict(turn=rotation(64), N=2),
        ),  # shared B, RoPE on reading
        ((78, 2, 2, 64, 64, True, True, True), dict(turn=rotation(64), R_Q=0)),
        ((34, 2, 1, 32, 128), dict(turn=rotation(32, "bfloat16"), dtype=jnp.float16)),
        ((22, 2, 2, 64, 64, False, True, True), dict(turn=rotation(64), R_Q=0)),
        ((128, 3, 3, 128, 128, True, True, True), dict(turn=rotation(128))),
        ((47, 2, 2, 64, 64, True, True, False, 2), dict(N=3)),  # heads in shares
        ((78, 2, 2, 64, 64, True, True, True, 3), dict(turn=rotation(64))),
        ((34, 2, 2, 64, 64, False, True, False, 4), dict()),
        ((47, 2, 2, 64, 64, True, False, False, 2), dict()),
    ],
)
def test_matches_algorithm_1_on_ragged_lengths(sizes, options):
    check(CacheLayout(*sizes), [1000, 0, 1, 513, 64, 65], capacity=1003, **options)


@needs_hopper
def test_one_long_sequence_over_the_whole_card():
    check(CacheLayout(32, 1, 1, 64, 64), [70001])


@needs_hopper
def test_keys_far_along_a_sequence_are_turned_by_its_whole_angle():
    check(CacheLayout(34, 2, 2, 64, 64, True, True, True), [70001, 3], turn=rotation(64), R_Q=0)


@needs_hopper
def test_many_sequences():
    lengths = [int(x) for x in np.random.default_rng(1).integers(0, 700, 100)]
    check(CacheLayout(47, 2, 2, 64, 64), lengths)


@needs_hopper
def test_saturated_softmax():
    check(CacheLayout(34, 2, 2, 64, 64), [900, 77], R_Q=0, query_scale=40.0)


@needs_hopper
def test_equal_logits():
    check(CacheLayout(32, 1, 1, 64, 64), [900, 77], equal=True)


@needs_hopper
def test_a_growing_cache_compiles_once_and_takes_appends_in_place():
    layout, B, M = CacheLayout(34, 2, 2, 64, 64), 3, 300
    query, factors, _, _ = make(layout, [M] * B, M, 1, 0, jnp.bfloat16)
    tokens = cache_layout.pack(layout, *factors)
    append = jax.jit(cache_layout.append, donate_argnums=0)
    decode = jax.jit(functools.partial(flash_tpa.decode, layout=layout))
    rows, lengths = jnp.zeros_like(tokens), jnp.array([0, 100, 200])
    for b, length in enumerate((0, 100, 200)):
        rows = rows.at[b, :length].set(tokens[b, :length])
    address = rows.unsafe_buffer_pointer()
    for _ in range(70):
        new = jnp.take_along_axis(tokens, lengths[:, None, None], axis=1)
        rows = append(rows, new, lengths)
        lengths = lengths + 1
        got = decode(query, rows, lengths)
    assert rows.unsafe_buffer_pointer() == address
    assert decode._cache_size() == 1
    want, _, _ = oracle(query, factors, list(np.asarray(lengths)), layout.dim_k**-0.5)
    assert np.linalg.norm(np.asarray(got, np.float64) - want) <= 1e-2 * np.linalg.norm(want)


@needs_hopper
def test_vmap_adds_an_axis():
    layout, lengths = CacheLayout(32, 1, 1, 64, 64), [[300, 0], [64, 129]]
    made = [make(layout, x, 300, 1, 6, jnp.bfloat16) for x in lengths]
    stack = lambda i: jax.tree.map(lambda *x: jnp.stack(x), *[m[i] for m in made])
    decode = functools.partial(flash_tpa.decode, layout=layout)
    got = jax.jit(jax.vmap(decode))(stack(0), stack(2), jnp.asarray(lengths, jnp.int32))
    for x, (query, _, rows, _), some in zip(lengths, made, got):
        one = jax.jit(decode)(query, rows, jnp.asarray(x, jnp.int32))
        np.testing.assert_array_equal(np.asarray(some, np.float32), np.asarray(one, np.float32))


@pytest.mark.parametrize(
    "sizes, options",
    [
        ((5, 3, 1, 32, 128), dict(N=3)),
        ((34, 2, 2, 64, 64), dict(N=2)),
        ((78, 2, 2, 64, 64), dict(R_Q=0, dtype=jnp.float16)),
        ((128, 1, 3, 128, 32), dict(R_Q=17)),
        ((34, 2, 2, 64, 64, False), dict(N=2)),
        ((47, 2, 2, 64, 64, True, False), dict()),
        ((61, 2, 2, 64, 64, True, True, True), dict(R_Q=0, query_scale=40.0)),
        ((47, 2, 2, 64, 64, True, True, True), dict(turn=rotation(64, "bfloat16"), N=2)),
        ((22, 3, 3, 32, 32, False, True, True), dict(turn=rotation(32), R_Q=0)),
        ((47, 2, 2, 64, 64, True, True, False, 2), dict(N=3)),
    ],
)
def test_the_triton_kernel_matches_algorithm_1(sizes, options):
    pytest.importorskip("jax_triton")
    check(CacheLayout(*sizes), [1000, 0, 1, 513, 64, 65], capacity=1003, kernel="triton", **options)
