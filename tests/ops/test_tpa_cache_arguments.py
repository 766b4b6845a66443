"""What a TPACache refuses: factors slide into one another in a row that is not of their sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t6jax import InputError
from t6jax.arguments import integers
from t6jax.ops.token_cache import TokenCache
from t6jax.ops.tpa_cache import TPACache
from t6jax.ops.tpa_factors import TPAEntry


def entry(heads=3, rank_k=2, rank_v=1, tokens=1, batch=2, dim=8, dtype=jnp.float32) -> TPAEntry:
    shapes = ((rank_k, heads), (rank_k, dim), (rank_v, heads), (rank_v, 8))
    return TPAEntry(*(jnp.ones((batch, tokens, *shape), dtype) for shape in shapes))


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (entry(rank_k=1), r"entry.a_k has shape \[2, 1, 1, 3\], but the cache asks for \[2, 1, 2,"),
        (entry(rank_k=3), "entry.a_k has shape"),
        (entry(rank_v=2), r"entry.a_v has shape .* asks for \[2, 1, 1, 3\]"),
        (entry(heads=4), "entry.a_k has shape"),
        (entry(heads=2), "entry.a_k has shape"),
        (entry(heads=1), "entry.a_k has shape"),
        (entry(dim=16), "entry.b_k has shape"),
        (entry(batch=1), "entry.a_k has shape"),
        (entry()._replace(a_v=jnp.ones((2, 2, 1, 3))), r"a_v has shape .* asks for \[2, 1, 1, 3"),
        (entry()._replace(b_v=None), "entry.b_v is missing: the cache holds b_v"),
        (entry(dtype=jnp.complex64), "entry.a_k must be an array of floating-point numbers"),
        (entry()._replace(b_k=[1.0]), r"entry.b_k must be an array .*; got \[1.0\]"),
        (tuple(entry()), "entry must be a TPAEntry"),
        (None, "entry must be a TPAEntry"),
    ],
)
def test_an_entry_that_is_not_of_the_caches_layout_is_refused(wrong, message, traced):
    cache, starts = TPACache.from_factors(*entry(tokens=4)), jnp.zeros(2, jnp.int32)
    append = lambda starts: cache.append(wrong, starts)
    with pytest.raises(InputError, match=message):
        (jax.jit(append) if traced else append)(starts)


@pytest.mark.usefixtures("unchecked_annotations")
def test_a_factor_that_the_cache_does_not_hold_is_refused():
    cache = TPACache.from_factors(*entry(rank_k=1, tokens=4)[:3])
    with pytest.raises(InputError, match="entry.b_v is given, but the cache does not hold b_v"):
        cache.append(entry(rank_k=1), jnp.zeros(2, jnp.int32))


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    "starts", [None, "x", 0, [0], [0.0, 0.0], jnp.zeros(3, jnp.int32), [[0], [1]]]
)
def test_starts_of_the_wrong_type_or_shape_are_named(starts):
    cache = TPACache.from_factors(*entry(tokens=4))
    with pytest.raises(InputError, match=r"starts must be integers of shape \[2\]"):
        cache.append(entry(), starts)


@pytest.mark.usefixtures("unchecked_annotations")
def test_starts_may_be_a_list():
    cache = TPACache.empty(2, 4, num_heads=3, rank_k=2, rank_v=1, key_dim=8, value_dim=8)
    written = cache.append(entry(), [0, 3]).stored().a_v[:, :, 0, 0]
    np.testing.assert_array_equal(written, [[1, 0, 0, 0], [0, 0, 0, 1]])


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": "2"}, "batch must be an integer, at least 0; got '2'"),
        ({"max_length": -1}, "max_length must be an integer, at least 0; got -1"),
        ({"num_heads": 0}, "num_heads must be an integer, at least 1; got 0"),
        ({"rank_k": 1.5}, "rank_k must be an integer, at least 1; got 1.5"),
        ({"rank_v": True}, "rank_v must be"),
        ({"key_dim": None}, "key_dim must be"),
        ({"dtype": "x"}, "dtype must be one of floating-point numbers; got 'x'"),
        ({"dtype": jnp.int32}, "dtype must be"),
        ({"dtype": jnp.complex64}, "dtype must be"),
    ],
)
def test_sizes_of_an_empty_cache_are_checked(change, message):
    sizes = {"num_heads": 3, "rank_k": 2, "rank_v": 1, "key_dim": 8, "value_dim": 8}
    with pytest.raises(InputError, match=message):
        TPACache.empty(**({"batch": 2, "max_length": 4} | sizes | change))


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("wrong", [[1], "x", 3, {}, np.array(["a"]), jnp.ones((2, 4, 2, 3), int)])
def test_factors_that_are_no_arrays_of_floats_are_named(wrong):
    with pytest.raises(InputError, match="a_k must be an array of floating-point numbers; got"):
        TPACache.from_factors(wrong, *entry(tokens=4)[1:])
    with pytest.raises(InputError, match="fixed must be FixedFactors"):
        TPACache.from_factors(*entry(tokens=4), fixed=[1])
    with pytest.raises(InputError, match="rope must be a RoPE"):
        TPACache.from_factors(*entry(tokens=4), rope=True)


def test_an_entry_of_a_tokens_cache_must_have_its_shape():
    cache = TokenCache({"k": jnp.zeros((2, 4, 3, 8))})
    for shape in ((2, 1, 1, 8), (2, 1, 3, 1), (1, 1, 3, 8)):
        with pytest.raises(InputError, match=r"but the cache asks for \[2, T, 3, 8\]"):
            cache.append({"k": jnp.ones(shape)}, jnp.zeros(2, jnp.int32))


def test_an_array_of_jax_stays_where_it_is():
    starts = jnp.array([3, 0], jnp.int32)
    assert integers("starts", starts, 2) is starts  # not by way of the host
