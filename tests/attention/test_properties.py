"""Over ranks, heads and widths drawn at random, 1 and numbers that divide nothing among them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from t6jax import FixedFactors, TPACache, TPAEntry, decode
from t6jax.attention import MECHANISMS
from t6jax.ops.decode.dense import decode_dense
from t6jax.ops.rope import RoPE
from tests.attention.cases import arange_positions, build, hidden_states

few = settings(max_examples=4, deadline=None, derandomize=True)
small = st.sampled_from([1, 2, 3, 5, 7])
even = st.sampled_from([2, 4, 6, 10])


@st.composite
def configs(draw, name: str):
    """A mechanism of that name with any small sizes and flags."""
    keys = {"num_heads": draw(small), "head_dim": draw(even), "head_norm": draw(st.booleans())}
    if name == "gqa":
        keys["num_kv_heads"] = draw(small)
        keys["num_heads"] *= keys["num_kv_heads"]
    if name == "mla":
        keys |= {"kv_rank": draw(small), "q_rank": draw(small), "rope_dim": draw(even)}
    if name.startswith("tpa"):
        rank = draw(small)
        shared = draw(st.booleans())
        keys |= {"rank_k": rank, "rank_v": rank if shared else draw(small), "shared_kv_b": shared}
        if name != "tpa_kvonly":
            keys["rank_q"] = draw(small)
        if name != "tpa_nonctx_a":
            keys |= {
                f"activation_{x}": draw(st.sampled_from(["none", "sigmoid", "softmax"]))
                for x in "kv"
            }
    if name == "tpa_order3":
        keys |= {"dim_b": keys["head_dim"], "dim_c": draw(small)}
        keys["head_dim"] *= keys["dim_c"]
    return MECHANISMS[name](**keys)


@pytest.mark.parametrize("name", MECHANISMS)
def test_counts_hold_and_decoding_equals_the_forward(name):
    @few
    @given(config=configs(name), d_model=st.sampled_from([1, 6, 11]), first=st.integers(0, 4))
    def check(config, d_model, first):
        graph, state = nnx.split(build(config, d_model=d_model))
        assert sum(math.prod(x.shape) for x in jax.tree.leaves(state)) == config.parameter_count(
            d_model
        )
        x = hidden_states(2, 5, d_model=d_model)

        @jax.jit
        def both(state):
            module = nnx.merge(graph, state)
            full, entry = module(x, arange_positions(x))
            cache = module.empty_cache(2, 5)
            cached = sum(math.prod(e.shape) for e in jax.tree.leaves(entry))
            assert cached == 2 * 5 * config.cached_numbers_per_token
            cache = (
                cache.append(jax.tree.map(lambda e: e[:, :first], entry), jnp.zeros(2, jnp.int32))
                if first
                else cache
            )
            return full[:, first:], module.extend(x[:, first:], cache, jnp.array([5, 5]))[0]

        full, decoded = both(state)
        np.testing.assert_allclose(decoded, full, rtol=0, atol=1e-5 * max(1.0, np.abs(full).max()))

    check()


def attention(q, k, v, lengths, scale):
    """Each new token over what it sees, in float64: q [B, N, H, D], k [B, M, H, D], v [B, M, H,
    E].
    """
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, n, h in np.ndindex(q.shape[:3]):
        m = lengths[b] - q.shape[1] + 1 + n
        if m > 0:
            s = k[b, :m, h] @ q[b, n, h] * scale
            p = np.exp(s - s.max())
            out[b, n, h] = p / p.sum() @ v[b, :m, h]
    return out


@few
@given(
    groups=small,
    shared_by=small,
    d=small,
    e=small,
    new=st.integers(1, 3),
    lengths=st.tuples(*[st.integers(0, 6)] * 2),
)
def test_dense_decode_is_attention_over_what_is_seen(groups, shared_by, d, e, new, lengths):
    random = np.random.default_rng(0)
    q = random.standard_normal((2, new, groups * shared_by, d))
    k, v = random.standard_normal((2, 6, groups, d)), random.standard_normal((2, 6, groups, e))
    want = attention(q, np.repeat(k, shared_by, 2), np.repeat(v, shared_by, 2), lengths, d**-0.5)
    got = decode_dense(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), jnp.array(lengths))
    # scores of at most a few units, from D products; sums of at most 6 values
    np.testing.assert_allclose(got, want, rtol=0, atol=64 * np.finfo(np.float32).eps * (d + 6))


@few
@given(
    heads=small,
    ranks=st.tuples(small, small),
    dims=st.tuples(even, small),
    fixed=st.sampled_from(["", "a", "b"]),
    shared=st.booleans(),
    rotated=st.booleans(),
)
def test_a_cache_of_fixed_and_shared_factors_is_the_cache_of_what_they_stand_for(
    heads, ranks, dims, fixed, shared, rotated
):
    (r_k, r_v), (d, e), length = ranks, dims, 5
    if shared:
        r_v, e = r_k, d
    random = np.random.default_rng(1)
    draw = lambda letter, r, size: jnp.asarray(
        random.standard_normal((r, size) if letter == fixed else (2, length, r, size)), "float32"
    )
    a_k, b_k, a_v, b_v = (
        draw("a", r_k, heads),
        draw("b", r_k, d),
        draw("a", r_v, heads),
        draw("b", r_v, e),
    )
    whole = lambda x: jnp.broadcast_to(x, (2, length, *x.shape[-2:]))
    plain_b_k = (
        RoPE()(whole(b_k), jnp.broadcast_to(jnp.arange(length), (2, length)))
        if rotated
        else whole(b_k)
    )
    plain = TPACache.from_factors(whole(a_k), plain_b_k, whole(a_v), whole(b_k if shared else b_v))
    given = {"a_k": a_k, "b_k": b_k, "a_v": a_v} | ({} if shared else {"b_v": b_v})
    same = FixedFactors(**{name: x for name, x in given.items() if x.ndim == 2})
    tokens = (
        given[name] if name in given and given[name].ndim == 4 else None
        for name in TPAEntry._fields
    )
    compact = TPACache.from_factors(*tokens, fixed=same, rope=RoPE() if rotated else None)
    query, lengths = (
        jnp.asarray(random.standard_normal((2, 2, heads, d)), "float32"),
        jnp.array([4, 1]),
    )
    want = decode(query, plain, lengths)
    # the same products, summed in another order
    np.testing.assert_allclose(
        decode(query, compact, lengths, fixed=same),
        want,
        rtol=0,
        atol=2e-5 * max(1.0, np.abs(want).max()),
    )
