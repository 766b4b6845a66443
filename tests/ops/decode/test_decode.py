"""t6jax.decode: its "xla" implementation is Algorithm 1, and bad arguments are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t6jax
from t6jax import InputError, TPACache, TPAQuery

EPSILON = np.finfo(np.float32).eps


def draw(rng, batch, new, length, heads, rank_q, rank_k, rank_v, d, e):
    shapes = {
        "a_q": (batch, new, rank_q, heads),
        "b_q": (batch, new, rank_q, d),
        "a_k": (batch, length, rank_k, heads),
        "b_k": (batch, length, rank_k, d),
        "a_v": (batch, length, rank_v, heads),
        "b_v": (batch, length, rank_v, e),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def call(f, lengths=None, **options):
    query = (
        TPAQuery(jnp.asarray(f["a_q"]), jnp.asarray(f["b_q"]))
        if "a_q" in f
        else jnp.asarray(f["q"])
    )
    cache = TPACache.from_factors(*(jnp.asarray(f[name]) for name in ("a_k", "b_k", "a_v", "b_v")))
    return t6jax.decode(query, cache, lengths, **options)


def algorithm_1(f, lengths, scale):
    """Algorithm 1 for any ranks, a query, a head at a time, in float64."""
    f = {name: x.astype(np.float64) for name, x in f.items()}
    (batch, new, rank_q, heads), rank_k, rank_v = (
        f["a_q"].shape,
        f["a_k"].shape[2],
        f["a_v"].shape[2],
    )
    out, lse = (
        np.zeros((batch, new, heads, f["b_v"].shape[3])),
        np.full((batch, new, heads), -np.inf),
    )
    largest = 0.0
    for b, n, h in np.ndindex(batch, new, heads):
        m = lengths[b] - new + 1 + n
        if m <= 0:
            continue
        s1 = np.einsum("rd,mkd->mkr", f["b_q"][b, n], f["b_k"][b, :m])
        s2 = s1 @ f["a_q"][b, n, :, h]
        logits = (s2 * f["a_k"][b, :m, :, h]).sum(1) * scale / rank_q / rank_k
        p = np.exp(logits - logits.max())
        lse[b, n, h] = logits.max() + np.log(p.sum())
        out[b, n, h] = (
            np.einsum("m,mr,mre->e", p / p.sum(), f["a_v"][b, :m, :, h], f["b_v"][b, :m]) / rank_v
        )
        largest = max(largest, np.abs(logits).max())
    return out, lse, largest


@pytest.mark.parametrize(
    ("heads", "ranks", "d", "e"),
    [
        (1, (1, 1, 1), 4, 4),
        (5, (4, 2, 3), 8, 6),
        (47, (6, 2, 2), 16, 16),
        (78, (2, 4, 1), 6, 10),
        (34, (16, 1, 1), 8, 8),
    ],
)
@pytest.mark.parametrize("new", [1, 4])
def test_xla_is_algorithm_1(heads, ranks, d, e, new):
    rng = np.random.default_rng(heads + new)
    length = 19
    f = draw(rng, 5, new, length, heads, *ranks, d, e)
    lengths = np.array([0, 1, 7, 18, 19], np.int32)
    scale = 0.7
    out, lse = call(f, jnp.asarray(lengths), scale=scale, return_lse=True)
    want, want_lse, largest = algorithm_1(f, lengths, scale)

    # A sum of n float32 products is off by at most n epsilon of the sum of their magnitudes. The
    # scores' sums have D + R_Q + R_K terms; an error of a score is a relative error of exp(score),
    # the larger the score; the output's sums have M + R_V terms. The magnitudes' sum is up to a few
    # times the largest result, hence the 4.
    score_error = 4 * EPSILON * (d + ranks[0] + ranks[1]) * max(largest, 1)
    bound = score_error + 4 * EPSILON * (length + ranks[2])
    np.testing.assert_allclose(out, want, rtol=0, atol=bound * np.abs(want).max())
    np.testing.assert_allclose(lse, want_lse, rtol=0, atol=bound * max(largest, 1))


def test_a_token_that_sees_nothing_gets_zeros_and_minus_infinity():
    f = draw(np.random.default_rng(0), 2, 4, 6, 3, 2, 1, 1, 4, 4)
    out, lse = call(f, jnp.array([0, 2]), return_lse=True)
    assert not np.any(out[0])
    assert np.all(np.isneginf(lse[0]))
    assert not np.any(out[1, :2]), "tokens 0 and 1 of 4 come before the sequence's first token"
    assert np.all(np.isneginf(lse[1, :2]))
    assert np.all(np.isfinite(lse[1, 2:]))


def test_what_lies_behind_the_length_does_not_matter_even_nan():
    f = draw(np.random.default_rng(1), 1, 1, 8, 3, 2, 2, 2, 4, 4)
    clean = call(f, jnp.array([5]))
    for name in ("a_k", "b_k", "a_v", "b_v"):
        f[name][:, 5:] = np.nan
    np.testing.assert_array_equal(call(f, jnp.array([5])), clean)


def test_a_dense_query_is_the_combined_factors():
    f = draw(np.random.default_rng(2), 2, 3, 7, 5, 3, 2, 1, 8, 4)
    factored = call(f)
    f["q"] = np.einsum("bnrh,bnrd->bnhd", f.pop("a_q"), f.pop("b_q")) / 3
    dense = call(f)
    # both round sums of at most 8 products of normal numbers, then a softmax; see
    # test_xla_is_algorithm_1
    np.testing.assert_allclose(dense, factored, rtol=0, atol=64 * EPSILON * np.abs(factored).max())


def test_saturated_and_equal_scores_stay_finite():
    f = draw(np.random.default_rng(3), 1, 1, 9, 2, 1, 1, 1, 4, 4)
    f["b_q"] *= 1e4
    out, lse = call(f, return_lse=True)
    assert np.all(np.isfinite(out)) and np.all(np.isfinite(lse))
    f["b_q"] *= 0
    want = np.einsum("bmh,bme->bhe", f["a_v"][:, :, 0], f["b_v"][:, :, 0]) / 9
    np.testing.assert_allclose(
        call(f)[:, 0], want, rtol=0, atol=9 * EPSILON * np.abs(f["b_v"]).max() ** 2
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_result_has_the_querys_dtype(dtype):
    f = draw(np.random.default_rng(4), 1, 1, 4, 2, 1, 1, 1, 4, 4)
    f = {name: jnp.asarray(x, dtype) for name, x in f.items()}
    out, lse = call(f, return_lse=True)
    assert out.dtype == dtype and lse.dtype == jnp.float32


def test_lengths_are_data_no_recompilation():
    f = draw(np.random.default_rng(5), 2, 1, 8, 2, 1, 1, 1, 4, 4)
    decode = jax.jit(lambda lengths: call(f, lengths))
    for lengths in ([1, 2], [8, 0], [3, 7]):
        # fused and unfused sums of at most 8 terms round differently
        want = call(f, jnp.array(lengths))
        np.testing.assert_allclose(
            decode(jnp.array(lengths)), want, rtol=0, atol=16 * EPSILON * np.abs(want).max()
        )
    assert decode._cache_size() == 1


def test_inside_jit_a_length_outside_the_cache_is_taken_as_its_end():
    f = draw(np.random.default_rng(6), 3, 2, 4, 2, 1, 1, 1, 4, 4)
    decode = jax.jit(lambda lengths: call(f, lengths, return_lse=True))
    for got, want in zip(decode(jnp.array([9, 4, -3])), decode(jnp.array([4, 4, 0])), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"a_q": (2, 1, 3, 4)}, "query.a"),
        ({"b_q": (2, 1, 3, 9)}, "query.b"),
        ({"a_q": (2, 2, 3, 5)}, "query.a .* query.b"),
        ({"b_k": (2, 7, 2, 8)}, "b_k"),
        ({"a_v": (2, 6, 1, 4)}, "a_v"),
        ({"b_v": (2, 6, 2, 8)}, "b_v"),
        ({"b_v": (2, 6, 8)}, "b_v"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_shapes_that_disagree_are_named(change, named):
    f = draw(np.random.default_rng(7), 2, 1, 6, 5, 3, 2, 1, 8, 8)
    f |= {name: np.zeros(shape, np.float32) for name, shape in change.items()}
    with pytest.raises(InputError, match=named):
        call(f)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([7, 1], "between 0 and the cache's 6"),
        ([-1, 1], "between 0 and the cache's 6"),
        ([1], r"shape \[2\]"),
        ([1.0, 2.0], "integers"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_wrong_lengths_are_refused(lengths, message):
    f = draw(np.random.default_rng(8), 2, 1, 6, 5, 3, 2, 1, 8, 8)
    with pytest.raises(InputError, match=message):
        call(f, jnp.array(lengths))


@pytest.mark.usefixtures("unchecked_annotations")
def test_other_wrong_arguments_are_named():
    f = draw(np.random.default_rng(9), 2, 1, 6, 5, 3, 2, 1, 8, 8)
    with pytest.raises(InputError, match="dense' is unknown"):
        call(f, implementation="dense")
    with pytest.raises(NotImplementedError, match="mosaic_gpu' needs a Hopper GPU"):
        call(f, implementation="mosaic_gpu")
    with pytest.raises(InputError, match="TPACache"):
        t6jax.decode(jnp.zeros((2, 1, 5, 8)), (1, 2, 3, 4))
    with pytest.raises(InputError, match="query must be a TPAQuery"):
        t6jax.decode(
            (f["a_q"], f["b_q"]),
            TPACache.from_factors(*(f[k] for k in ("a_k", "b_k", "a_v", "b_v"))),
        )
    with pytest.raises(InputError, match="query has shape"):
        call(
            {
                "q": np.zeros((2, 1, 5, 7), np.float32),
                **{k: f[k] for k in ("a_k", "b_k", "a_v", "b_v")},
            }
        )
    with pytest.raises(InputError, match="one dtype"):
        TPACache.from_factors(
            *(
                jnp.asarray(f[k], d)
                for k, d in zip(("a_k", "b_k", "a_v", "b_v"), "ffef", strict=True)
            )
        )
