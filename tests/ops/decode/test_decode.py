"""t6jax.decode: "xla" is Algorithm 1, bad arguments are named, and the implementation goes by the
platform that is lowered for.
"""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t6jax
from t6jax import FixedFactors, InputError, TPACache, TPAQuery
from t6jax.ops import implementation as implementations
from tests.ops.decode.base import Case, DecodeTests, arguments, draw

EPSILON = np.finfo(np.float32).eps


class TestXLA(DecodeTests):
    implementation = "xla"


class TestXLAInBfloat16(DecodeTests):
    implementation = "xla"
    dtype = jnp.bfloat16


def call(f, lengths=None, **options):
    query = (
        TPAQuery(jnp.asarray(f["a_q"]), jnp.asarray(f["b_q"]))
        if "a_q" in f
        else jnp.asarray(f["q"])
    )
    cache = TPACache.from_factors(*(jnp.asarray(f[name]) for name in ("a_k", "b_k", "a_v", "b_v")))
    return t6jax.decode(query, cache, lengths, **options)


def text(*arguments, platform="cuda", **options):
    """What a call lowers to."""
    run = jax.jit(lambda q, c, lengths, fixed: t6jax.decode(q, c, lengths, fixed=fixed, **options))
    return run.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("kind", ["contextual", "dense query", "fixed a", "fixed b", "shared b"])
def test_lowered_for_cuda_the_kernel_is_taken_and_elsewhere_the_definition(kind):
    call = arguments(Case(kind=kind), jnp.bfloat16)
    assert "mosaic_gpu" in text(*call)
    assert "mosaic_gpu" in text(*call, implementation="mosaic_gpu")
    assert "mosaic_gpu" not in text(*call, implementation="xla")
    assert "custom_call" not in text(*call, platform="cpu")


def test_no_kernel_takes_float32_caches_or_96_features_and_the_log_says_so(caplog, monkeypatch):
    monkeypatch.setattr(implementations, "_reported", set())
    caplog.set_level(logging.INFO, "t6jax")
    for case, dtype, why in (
        (Case(), jnp.float32, "not mosaic_gpu: .*must be bfloat16 or float16, not float32"),
        (Case(dims=(96, 96)), jnp.bfloat16, "not mosaic_gpu: .*must be 32, 64 or 128, not 96"),
        (Case(), jnp.bfloat16, "mosaic_gpu where lowered for CUDA, xla elsewhere"),
    ):
        caplog.clear()
        for _ in range(2):
            lowered = text(*arguments(case, dtype))
        assert ("custom_call" in lowered) == ("where lowered" in why)
        (record,) = caplog.records
        assert re.search(why, record.message), record.message


def test_a_named_kernel_says_why_it_does_not_take_a_call():
    query, cache, lengths, _ = arguments(Case(), jnp.float32)
    with pytest.raises(NotImplementedError, match="mosaic_gpu' does not take .*float32"):
        t6jax.decode(query, cache, lengths, implementation="mosaic_gpu")
    query, cache, lengths, _ = arguments(Case(), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="needs an NVIDIA GPU; .* lowered for cpu"):
        t6jax.decode(query, cache, lengths, implementation="mosaic_gpu")


def test_a_mesh_that_names_its_device_decides():
    kind = lambda name, platform: jax.sharding.AbstractMesh(
        (1,), ("x",), abstract_device=jax.sharding.AbstractDevice(name, 132, platform)
    )
    call = arguments(Case(), jnp.bfloat16)
    for mesh, wanted in (
        (kind("NVIDIA H200", "gpu"), True),
        (kind("NVIDIA A100", "gpu"), False),
        (kind("cpu", "cpu"), False),
    ):
        with jax.sharding.use_abstract_mesh(mesh):
            jaxpr = str(jax.make_jaxpr(t6jax.decode)(*call[:3]))
        assert ("Ref<gmem>" in jaxpr) == wanted  # Mosaic GPU's
        assert "platform_index" not in jaxpr


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


@pytest.mark.usefixtures("unchecked_annotations")
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
def test_shapes_that_disagree_are_named(change, named):
    f = draw(np.random.default_rng(7), 2, 1, 6, 5, 3, 2, 1, 8, 8)
    f |= {name: np.zeros(shape, np.float32) for name, shape in change.items()}
    with pytest.raises(InputError, match=named):
        call(f)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([7, 1], "between 0 and the cache's 6"),
        ([-1, 1], "between 0 and the cache's 6"),
        ([1], r"shape \[2\]"),
        ([1.0, 2.0], "integers"),
    ],
)
def test_wrong_lengths_are_refused(lengths, message):
    f = draw(np.random.default_rng(8), 2, 1, 6, 5, 3, 2, 1, 8, 8)
    with pytest.raises(InputError, match=message):
        call(f, jnp.array(lengths))


@pytest.mark.usefixtures("unchecked_annotations")
def test_other_wrong_arguments_are_named():
    f = draw(np.random.default_rng(9), 2, 1, 6, 5, 3, 2, 1, 8, 8)
    with pytest.raises(InputError, match="dense' of decode is unknown"):
        call(f, implementation="dense")
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


@pytest.mark.usefixtures("unchecked_annotations")
def test_wrong_fixed_factors_are_named():
    query, cache, lengths, fixed = arguments(Case(kind="fixed a"), jnp.float32)
    with pytest.raises(InputError, match="fixed.a_k must have shape .*; got nothing"):
        t6jax.decode(query, cache, lengths)
    with pytest.raises(InputError, match="fixed.a_v must have shape .*; got shape"):
        t6jax.decode(query, cache, lengths, fixed=fixed._replace(a_v=fixed.a_v[:1]))
    with pytest.raises(InputError, match="fixed.b_k is given, but the cache holds b_k"):
        t6jax.decode(query, cache, lengths, fixed=fixed._replace(b_k=jnp.zeros((2, 64))))
    tokens = {
        n: jnp.zeros((1, 4, 2, d)) for n, d in (("a_k", 5), ("b_k", 8), ("a_v", 5), ("b_v", 8))
    }
    same = FixedFactors(a_k=jnp.zeros((2, 5)))
    for change, message in (
        ({"a_k": same.a_k}, "a_k must have 4 axes"),
        ({"a_k": None}, "a_k is missing"),
        ({"fixed": same}, "a_k and fixed.a_k are both given"),
        ({"a_k": None, "fixed": same}, "a_k and a_v must either both"),
    ):
        with pytest.raises(InputError, match=message):
            TPACache.from_factors(**(tokens | change))


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("kind", ["factored", "dense"])
def test_types_that_decode_does_not_take_are_named(kind):
    f = draw(np.random.default_rng(10), 2, 1, 6, 5, 3, 2, 1, 8, 8)
    cache = TPACache.from_factors(*(jnp.asarray(f[k]) for k in ("a_k", "b_k", "a_v", "b_v")))
    query = jnp.zeros((2, 1, 5, 8))
    wrap = lambda x: x
    if kind == "factored":
        wrap = lambda x: TPAQuery(jnp.zeros((2, 1, 3, 5)), x)
        query = jnp.zeros((2, 1, 3, 8))
    floats = "must be an array of floating-point numbers; got "
    for wrong, got in (
        (query + 1j, r"complex64\[2, 1"),  # of which the imaginary part would be lost
        (query.astype(jnp.int32), "int32"),
        (query.astype(bool), "bool"),
    ):
        with pytest.raises(InputError, match=floats + got):
            t6jax.decode(wrap(wrong), cache)
        with pytest.raises(InputError, match=floats + got):
            jax.jit(t6jax.decode)(wrap(wrong), cache)
    for wrong in (None, query.tolist(), "q"):
        with pytest.raises(InputError, match="query"):
            t6jax.decode(wrap(wrong), cache)
    for options, message in (
        ({"lengths": "x"}, r"lengths must be integers of shape \[2\]"),
        ({"lengths": [None, 1]}, "lengths must be integers"),
        ({"lengths": {}}, "lengths must be integers"),
        ({"lengths": [2**40, 1]}, "lengths must be integers of 32 bits"),
        ({"scale": "x"}, "scale must be a finite number; got 'x'"),
        ({"scale": float("nan")}, "scale must be a finite number; got nan"),
        ({"scale": float("inf")}, "scale must be a finite number"),
        ({"scale": 1j}, "scale must be a finite number"),
        ({"scale": True}, "scale must be a finite number"),
        ({"implementation": ["xla"]}, "implementation=.* of decode is unknown"),
        ({"fixed": [1]}, "fixed must be FixedFactors"),
        ({"fixed": FixedFactors(a_k=[1])}, "fixed.a_k must be an array"),
    ):
        with pytest.raises(InputError, match=message):
            t6jax.decode(wrap(query), cache, **options)
    t6jax.decode(wrap(query), cache, [1, 2], scale=np.float32(0.5))
