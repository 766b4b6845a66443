"""t6jax.decode on an NVIDIA GPU: the kernels are chosen where they take the call, and are the
oracle's within bfloat16.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t6jax
from t6jax import TPACache, TPAQuery
from t6jax.ops.rope import RoPE
from tests.ops.decode.test_decode import draw

HOPPER = getattr(jax.devices()[0], "compute_capability", None) == "9.0"


def arguments(kind: str, heads: int = 47, new: int = 1):
    f = draw(np.random.default_rng(heads), 3, new, 700, heads, 6, 2, 2, 64, 64)
    f = {name: jnp.asarray(x, jnp.bfloat16) for name, x in f.items()}
    factors = {name: f[name] for name in ("a_k", "b_k", "a_v", "b_v")}
    if kind == "non-contextual a":
        factors |= {name: f[name][0, 0] for name in ("a_k", "a_v")}
    if kind == "non-contextual b":
        factors |= {name: f[name][0, 0] for name in ("b_k", "b_v")} | {"rope": RoPE()}
    if kind == "shared b":
        factors |= {"b_v": None, "rope": RoPE()}
    query = TPAQuery(f["a_q"], f["b_q"])
    if kind == "dense query":
        query = jnp.einsum("bnrh,bnrd->bnhd", *query)
    return query, TPACache.from_factors(**factors), jnp.array([0, 333, 700], jnp.int32)


@pytest.mark.parametrize("implementation", ["mosaic_gpu", "triton", None])
@pytest.mark.parametrize(
    "kind", ["contextual", "dense query", "non-contextual a", "non-contextual b", "shared b"]
)
@pytest.mark.parametrize("new", [1, 3])
def test_kernels_are_the_oracle_within_bfloat16(implementation, kind, new):
    if implementation == "mosaic_gpu" and not HOPPER:
        pytest.skip("needs a Hopper GPU")
    query, cache, lengths = arguments(kind, new=new)
    decode = lambda name: jax.jit(
        lambda *a: t6jax.decode(*a, implementation=name, return_lse=True)
    )(query, cache, lengths)
    (got, lse), (want, want_lse) = decode(implementation), decode("xla")
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert not got[0].any() and np.isneginf(np.asarray(lse)[0]).all()
    # q, P a_v and the output are rounded to bfloat16, half an ulp of 2^-8 each
    assert np.linalg.norm(got - want) < 1e-2 * np.linalg.norm(want)
    np.testing.assert_allclose(lse[1:], want_lse[1:], atol=5e-2)


def test_the_fastest_that_takes_the_call_is_chosen():
    query, cache, lengths = arguments("contextual")
    text = lambda *a: jax.jit(t6jax.decode).lower(*a).as_text()
    assert ("mosaic_gpu" in text(query, cache, lengths)) == HOPPER
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (query, cache))
    assert "custom_call" not in text(*wide, lengths), "no kernel takes float32 caches"
    with pytest.raises(NotImplementedError, match="float32"):
        t6jax.decode(*wide, lengths, implementation="mosaic_gpu")


def test_a_length_outside_the_cache_is_taken_as_its_end():
    query, cache, _ = arguments("contextual", new=3)
    for implementation in ("mosaic_gpu", "triton", "xla") if HOPPER else ("triton", "xla"):
        decode = jax.jit(
            lambda *a, name=implementation: t6jax.decode(*a, implementation=name, return_lse=True)
        )
        for got, want in zip(
            decode(query, cache, jnp.array([-5, 701, 2000])),
            decode(query, cache, jnp.array([0, 700, 700])),
        ):
            np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(want, np.float32))


def test_appending_and_decoding_is_in_place_and_compiled_once():
    query, cache, _ = arguments("contextual")

    def step(cache, query, lengths):
        entry = jax.tree.map(lambda x: x[:, :1], cache.stored())
        cache = cache.append(entry, lengths - 1)
        return t6jax.decode(query, cache, lengths), cache

    step = jax.jit(step, donate_argnums=0)
    bytes_cached = sum(x.nbytes for x in jax.tree.leaves(cache))
    compiled = step.lower(cache, query, jnp.array([1, 2, 3])).compile()
    assert compiled.memory_analysis().alias_size_in_bytes >= bytes_cached
    for n in (1, 64, 699):
        _, cache = step(cache, query, jnp.full(3, n))
    assert step._cache_size() == 1
