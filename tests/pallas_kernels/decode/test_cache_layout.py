import ast
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels.decode import cache_layout


def factors(heads, rank_k, rank_v, dim_k, dim_v, shape=(2, 7), dtype=jnp.bfloat16):
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = [(rank_k, heads), (rank_k, dim_k), (rank_v, heads), (rank_v, dim_v)]
    return [jax.random.normal(key, (*shape, *size)).astype(dtype) for key, size in zip(keys, sizes)]


@pytest.mark.parametrize(
    "sizes", [(32, 1, 1, 64, 64), (34, 2, 2, 64, 64), (47, 1, 3, 32, 128), (1, 2, 1, 128, 32)]
)
def test_unpack_inverts_pack(sizes):
    parts = factors(*sizes)
    layout = cache_layout.CacheLayout(*sizes)
    rows = cache_layout.pack(layout, *parts)
    assert rows.shape == (2, 7, layout.width) and layout.width % 16 == 0
    for part, again in zip(parts, cache_layout.unpack(layout, rows)):
        np.testing.assert_array_equal(part, again)


@pytest.mark.parametrize(
    "options, width, kept",
    [
        (dict(stores_a=False), 128, "b"),
        (dict(stores_b=False), 160, "a"),
        (dict(shared_b=True), 224, "ab"),
    ],
)
def test_a_row_leaves_out_what_is_not_the_token_s_own(options, width, kept):
    a_k, b_k, a_v, _ = parts = factors(34, 2, 2, 32, 32)
    layout = cache_layout.CacheLayout(34, 2, 2, 32, 32, **options)
    rows = cache_layout.pack(layout, *parts)
    assert rows.shape[-1] == layout.width == width
    got = cache_layout.unpack(layout, rows)
    for want, part, name in zip((a_k, b_k, a_v, b_k if layout.shared_b else parts[3]), got, "abab"):
        assert (part is None) == (name not in kept)
        if part is not None:
            np.testing.assert_array_equal(want, part)


@pytest.mark.parametrize("heads, wasted", [(32, 0), (34, 24), (47, 4), (61, 12), (78, 8)])
def test_padding_of_the_trained_models(heads, wasted):
    rank = 1 if heads == 32 else 2
    layout = cache_layout.CacheLayout(heads, rank, rank, 64, 64)
    assert layout.width - layout.useful_width == wasted


def test_append_writes_behind_each_length_and_nothing_else():
    rows = jnp.arange(3 * 8 * 4, dtype=jnp.float32).reshape(3, 8, 4).astype(jnp.bfloat16)
    new = -jnp.ones((3, 2, 4), jnp.bfloat16)
    lengths = jnp.array([0, 5, 7])
    got = np.asarray(jax.jit(cache_layout.append)(rows, new, lengths), np.float32)
    want = np.asarray(rows, np.float32)
    want[0, 0:2] = want[1, 5:7] = want[
        2, 7:8
    ] = -1  # the last row of sequence 2 falls behind the allocation
    np.testing.assert_array_equal(got, want)


def test_append_writes_nothing_before_the_start():
    rows, new = jnp.zeros((1, 4, 2)), jnp.ones((1, 3, 2))
    got = cache_layout.append(rows, new, jnp.array([-2]))
    np.testing.assert_array_equal(got[0, :, 0], [1, 0, 0, 0])


def test_append_is_in_place_when_donated():
    rows, new, lengths = (
        jnp.zeros((4, 16, 32), jnp.bfloat16),
        jnp.ones((4, 1, 32), jnp.bfloat16),
        jnp.arange(4),
    )
    compiled = jax.jit(cache_layout.append, donate_argnums=0).lower(rows, new, lengths).compile()
    assert compiled.memory_analysis().alias_size_in_bytes == rows.nbytes


def test_the_kernels_import_jax_alone():
    """With what comes with JAX, and jaxtyping. The modules of Triton kernels import triton; they,
    and jax-triton, are imported where a kernel is launched.
    """
    folder = pathlib.Path(pallas_kernels.__file__).parent
    allowed = {"jax", "jaxlib", "jaxtyping", "numpy", "pallas_kernels", *sys.stdlib_module_names}
    for path in folder.rglob("*.py"):
        if path.stem.endswith("_kernels"):
            continue
        tree = ast.parse(path.read_text())
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {
            (n.module if isinstance(n, ast.ImportFrom) else n.names[0].name).split(".")[0]
            for n in top
        }
        assert names <= allowed, (path.name, names - allowed)
