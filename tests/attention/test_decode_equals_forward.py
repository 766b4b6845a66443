"""Prefill followed by decoding gives what the full forward gives, whatever the mechanism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.attention.cases import CASES, arange_positions, build, hidden_states

# float32 sums in another order, on outputs of order 1
TOLERANCE = 1e-5


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_prefill_then_decode_equals_the_full_forward_from_ragged_starts(config):
    graph, state = nnx.split(build(config))
    x = hidden_states(3, 8)
    starts = jnp.array([1, 4, 0])

    @jax.jit
    def forward(state):
        module = nnx.merge(graph, state)
        out, entry = module(x, arange_positions(x))
        # the padding of the prompts is cached too, and overwritten or never seen
        return out, module.empty_cache(3, 9).append(entry, jnp.zeros(3, jnp.int32))

    @jax.jit
    def extend(state, new, cache, lengths):
        return nnx.merge(graph, state).extend(new, cache, lengths)

    full, cache = forward(state)
    take = lambda first, n: jnp.take_along_axis(
        x, (first[:, None] + jnp.arange(n))[..., None], axis=1
    )
    expect = lambda first, n: jnp.take_along_axis(
        full, (first[:, None] + jnp.arange(n))[..., None], axis=1
    )
    for lengths in (starts, starts + 1):
        out, cache = extend(state, take(lengths, 1), cache, lengths + 1)
        np.testing.assert_allclose(out, expect(lengths, 1), atol=TOLERANCE, rtol=0)
    lengths = starts + 2  # and two at once
    out, cache = extend(state, take(lengths, 2), cache, lengths + 2)
    np.testing.assert_allclose(out, expect(lengths, 2), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "name",
    ["tpa", "tpa_kvonly shared B", "tpa_nonctx_a", "tpa_nonctx_b", "tpa_order3", "gqa", "mla"],
)
def test_a_sequence_that_sees_nothing_gets_zeros_even_beside_garbage(name):
    module = build(CASES[name])
    x = hidden_states(2, 1)
    query, entry = module.project(x, arange_positions(x))
    cache = module.empty_cache(2, 3).append(entry, jnp.zeros(2, jnp.int32))
    poisoned = cache.append(
        jax.tree.map(lambda e: jnp.full_like(e, jnp.nan), entry), jnp.array([1, 1])
    )
    decode = jax.jit(lambda q, c, n: module.decode(q, c, n))
    out, clean = (decode(query, c, jnp.array([1, 0])) for c in (poisoned, cache))
    np.testing.assert_array_equal(out[1], 0)
    np.testing.assert_array_equal(out[0], clean[0])


def test_tokens_for_which_there_is_no_room_are_dropped():
    module = build(CASES["mha"])
    x = hidden_states(2, 3)
    _, entry = module.project(x, arange_positions(x))
    cache = module.empty_cache(2, 4).append(entry, jnp.array([3, -1]))
    np.testing.assert_array_equal(cache.tokens.k[0, :3], 0)
    np.testing.assert_array_equal(cache.tokens.k[0, 3], entry.k[0, 0])
    np.testing.assert_array_equal(cache.tokens.k[1, :2], entry.k[1, 1:])
    np.testing.assert_array_equal(cache.tokens.k[1, 2:], 0)


@pytest.mark.parametrize(
    "name", ["tpa", "tpa_nonctx_b", "tpa_kvonly shared B", "tpa_order3", "gqa", "mla"]
)
def test_appending_to_a_donated_cache_is_in_place(name):
    module = build(CASES[name])
    x = hidden_states(2, 1)
    _, entry = module.project(x, arange_positions(x))
    cache = module.empty_cache(2, 64)
    append = jax.jit(lambda c, e, n: c.append(e, n), donate_argnums=0)
    before = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(cache)}
    after = {
        leaf.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves(append(cache, entry, jnp.array([3, 0])))
    }
    assert before == after
