"""TPACache: appending at each sequence's own length, in place, and nothing beyond its room."""

import jax
import jax.numpy as jnp
import numpy as np

from t6jax.ops.tpa_cache import TPACache
from t6jax.ops.tpa_factors import TPAEntry


def entry(rng, batch, tokens):
    shapes = ((2, 5), (2, 8), (1, 5), (1, 6))
    return TPAEntry(
        *(jnp.asarray(rng.standard_normal((batch, tokens, *s)), jnp.float32) for s in shapes)
    )


def empty(batch, length):
    return TPACache.empty(
        batch, length, num_heads=5, rank_k=2, rank_v=1, key_dim=8, value_dim=6, dtype=jnp.float32
    )


def test_append_writes_after_each_sequences_own_length():
    rng = np.random.default_rng(0)
    new = entry(rng, 3, 2)
    cache = empty(3, 6).append(new, jnp.array([0, 4, 1]))
    for stored, want in zip(cache.stored(), new, strict=True):
        for b, start in enumerate([0, 4, 1]):
            np.testing.assert_array_equal(stored[b, start : start + 2], want[b])
            assert not np.any(np.delete(np.asarray(stored[b]), [start, start + 1], axis=0))


def test_append_drops_what_there_is_no_room_for():
    new = entry(np.random.default_rng(1), 2, 3)
    cache = empty(2, 4).append(new, jnp.array([3, -2]))
    for stored, want in zip(cache.stored(), new, strict=True):
        np.testing.assert_array_equal(stored[0, 3], want[0, 0])
        assert not np.any(stored[0, :3])
        np.testing.assert_array_equal(stored[1, 0], want[1, 2])
        assert not np.any(stored[1, 1:])


def test_append_is_in_place_where_the_cache_is_donated():
    append = jax.jit(lambda cache, new, starts: cache.append(new, starts), donate_argnums=0)
    new = entry(np.random.default_rng(2), 2, 1)
    cache = empty(2, 1024)
    compiled = append.lower(cache, new, jnp.array([0, 1])).compile()
    cached_bytes = sum(x.nbytes for x in jax.tree.leaves(cache))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cached_bytes
    assert memory.temp_size_in_bytes < cached_bytes / 8


def test_from_factors_gives_back_the_same_factors():
    factors = entry(np.random.default_rng(3), 2, 7)
    cache = TPACache.from_factors(*factors)
    assert cache.max_length == 7
    jax.tree.map(np.testing.assert_array_equal, cache.stored(), factors)
