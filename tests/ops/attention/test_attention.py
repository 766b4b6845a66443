"""Causal attention: "xla" is eq. 3.2, and the implementation goes by the platform that is lowered
for.
"""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t6jax import InputError
from t6jax.ops import implementation as implementations
from t6jax.ops.attention import causal_attention, cudnn, xla
from t6jax.parallel import sequence
from tests.ops.attention.base import AttentionTests

EPSILON = np.finfo(np.float32).eps
HOPPER = jax.sharding.AbstractDevice("NVIDIA H100", 132, "gpu")


class TestXLA(AttentionTests):
    implementation = "xla"


class TestXLAInBfloat16(AttentionTests):
    implementation = "xla"
    dtype = jnp.bfloat16


@pytest.mark.exhaustive  # which implementation it is, the tests below say
class TestTheDefaultOnACPU(AttentionTests):
    implementation = None
    dtype = jnp.bfloat16


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "limit", [1, 3 * 9 * 9 * 4 * 4, 5 * 9 * 9 * 4 * 3]
)  # scores: of a group; of four, with a rest; of five
def test_scores_computed_some_heads_at_a_time_give_the_same(monkeypatch, masked, limit):
    rng = np.random.default_rng(3)
    q = rng.standard_normal((2, 9, 9, 8)).astype(np.float32)
    k, v = (rng.standard_normal((2, 9, 3, d)).astype(np.float32) for d in (8, 5))
    segments = jnp.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0] * 9]) if masked else None
    loss = lambda *x: jnp.sum(jnp.sin(causal_attention(*x, segment_ids=segments)))
    run = lambda: jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)
    whole = run()
    monkeypatch.setattr(xla, "KEPT_SCORES", limit)
    assert "scan" in str(jax.make_jaxpr(loss)(q, k, v))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=16 * EPSILON), run(), whole
    )


def test_many_scores_are_not_kept_for_the_gradient():
    arrays = [jax.ShapeDtypeStruct((8, 1024, 64, 64), jnp.float32)] * 3  # 2 GiB of scores
    gradient = jax.jit(jax.grad(lambda *x: causal_attention(*x).sum(), argnums=(0, 1, 2)))
    assert (
        gradient.lower(*arrays).compile().memory_analysis().temp_size_in_bytes < 6 * xla.KEPT_SCORES
    )


@pytest.fixture
def cudnn_found(monkeypatch):
    """cuDNN's calls can be traced where its library is missing."""
    monkeypatch.setattr(cudnn.fused, "check_cudnn_version", lambda: 91000)


def trace(f, *shape, dtype=jnp.bfloat16, sharding=None, mesh=None, **options):
    """The jaxpr of f(query, key, value) for a Hopper GPU."""
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=HOPPER) if mesh is None else mesh
    arrays = [jax.ShapeDtypeStruct((*shape, 64), dtype, sharding=sharding)] * 3
    with jax.sharding.use_abstract_mesh(mesh):
        return str(jax.make_jaxpr(lambda *x: f(*x, **options))(*arrays))


def gradient(query, key, value, attention=causal_attention, **options):
    loss = lambda *x: attention(*x, **options).astype(jnp.float32).sum()
    return jax.grad(loss, argnums=(0, 1, 2))(query, key, value)


def test_the_gradient_kernel_is_taken_where_heads_fill_the_gpu(cudnn_found):
    for scale in (None, -0.3, 0):
        assert "attention_gradient" in trace(gradient, 24, 1024, 78, scale=scale)
    for shape in ((32, 1024, 47), (6, 4096, 78), (1, 32768, 25)):
        assert "attention_gradient" in trace(gradient, *shape)
    # no whole blocks; idle multiprocessors
    for shape in ((24, 1000, 78), (1, 1024, 7), (1, 32768, 7)):
        assert "attention_gradient" not in trace(gradient, *shape)
    segments = jnp.zeros((24, 1024), jnp.int32)
    assert "attention_gradient" not in trace(gradient, 24, 1024, 78, segment_ids=segments)


def test_the_forward_kernel_is_taken_where_blocks_of_queries_fill_the_gpu(cudnn_found):
    for shape in ((24, 1024, 78), (32, 1024, 47), (6, 4096, 78), (3, 8192, 11)):
        assert "attention_forward" in trace(causal_attention, *shape)
    for shape in ((24, 1024, 78), (32, 1024, 47), (6, 4096, 78)):
        assert "attention_forward" in trace(gradient, *shape)
    for shape in ((24, 1000, 78), (1, 1024, 7)):  # no whole blocks; idle multiprocessors
        assert "attention_forward" not in trace(causal_attention, *shape)
    assert "attention_forward" not in trace(gradient, 1, 32768, 7), (
        "cuDNN's gradient wants what its own forward pass keeps"
    )
    assert "attention_forward" not in trace(causal_attention, 24, 1024, 78, dtype=jnp.float16), (
        "whose range is too small for the kernel's weights"
    )


def test_a_mesh_of_one_device_keeps_nothing_from_the_kernels():
    mesh = jax.sharding.AbstractMesh(
        (1, 1),
        ("data", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        abstract_device=HOPPER,
    )
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    text = trace(gradient, 24, 1024, 25, mesh=mesh, sharding=sharding)
    assert "attention_forward" in text and "attention_gradient" in text


def test_arrays_spread_over_a_mesh_go_to_cudnn_alone(cudnn_found):
    """Under shard_map each device has its own arrays, which the kernel takes."""
    explicit = (jax.sharding.AxisType.Explicit,)
    mesh = jax.sharding.AbstractMesh((2,), ("data",), explicit, abstract_device=HOPPER)
    rows = jax.P("data")
    own = jax.shard_map(causal_attention, in_specs=rows, out_specs=rows, check_vma=False)
    spread = {"mesh": mesh, "sharding": jax.NamedSharding(mesh, rows)}
    assert "attention_gradient" not in trace(gradient, 48, 1024, 78, **spread)
    assert "attention_gradient" in trace(gradient, 48, 1024, 78, **spread, attention=own)


def test_along_a_split_sequence_the_kernels_are_taken_unless_there_are_segments(cudnn_found):
    explicit = (jax.sharding.AxisType.Explicit,)
    mesh = jax.sharding.AbstractMesh((2,), ("sequence",), explicit, abstract_device=HOPPER)

    def of_chunks(query, key, value, segments):
        query = sequence.local_tokens(query)
        chunks = sequence.local_chunks()
        return causal_attention(query, key, value, segment_ids=segments, chunks=chunks)

    def attention(*arrays, segmented):
        segments = jnp.zeros(arrays[0].shape[:2], jnp.int32) if segmented else None
        split = jax.shard_map(
            of_chunks,
            mesh=mesh,
            in_specs=jax.P(),
            out_specs=jax.P(None, "sequence"),
            check_vma=False,
        )
        return split(*arrays, segments)

    of = lambda tokens, segmented: trace(
        gradient, 1, tokens, 7, mesh=mesh, attention=attention, segmented=segmented
    )
    text = of(8192, False)
    assert "attention_forward" in text and "attention_gradient" in text
    for text in (of(8192 - 256, False), of(8192, True)):
        assert "attention_forward" not in text and "attention_gradient" not in text


def lowered(f, platform, shape=(24, 1024, 78, 64), dtype=jnp.bfloat16):
    arrays = [jax.ShapeDtypeStruct(shape, dtype)] * 3
    return jax.jit(f).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("f", [causal_attention, gradient])
def test_lowered_for_cuda_the_kernels_are_taken_and_elsewhere_the_definition(f):
    assert "mosaic_gpu" in lowered(f, "cuda") and "mosaic_gpu" not in lowered(f, "cpu")
    named = lambda *x: f(*x, implementation="mosaic_gpu")
    assert "mosaic_gpu" in lowered(named, "cuda", (1, 128, 1, 64))
    assert "custom_call" not in lowered(lambda *x: f(*x, implementation="xla"), "cuda")
    with pytest.raises(NotImplementedError, match="needs an NVIDIA GPU; .* lowered for cpu"):
        lowered(named, "cpu")


def test_why_no_faster_kernel_is_taken_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(implementations, "_reported", set())
    caplog.set_level(logging.INFO, "t6jax")
    jax.clear_caches()  # a call that another test traced is not chosen for again
    for f, why in (
        (
            lambda: lowered(causal_attention, "cuda", dtype=jnp.float32),
            "xla; not mosaic_gpu: .*float32.*; not cudnn: .*float32",
        ),
        (
            lambda: lowered(causal_attention, "cpu", (2, 256, 3, 192)),
            "xla; not mosaic_gpu: D must be 64, not 192; not cudnn: the wider of D and E",
        ),
        (
            lambda: trace(causal_attention, 1, 1024, 7),
            "cudnn where lowered for CUDA, .*; not mosaic_gpu: it would fill 21% of the GPU",
        ),
        (lambda: lowered(causal_attention, "cpu"), "mosaic_gpu where lowered for CUDA, xla elsewh"),
    ):
        caplog.clear()
        for _ in range(2):
            monkeypatch.setattr(cudnn.fused, "check_cudnn_version", lambda: 91000)
            f()
        (record,) = caplog.records
        assert re.search(why, record.getMessage()), record.getMessage()


@pytest.mark.parametrize("shape", [(1, 128, 4, 64), (2, 1024, 78, 64), (2, 64, 3, 32)])
def test_without_cudnn_bfloat16_is_traced_all_the_same(shape, monkeypatch):
    def missing():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(cudnn.fused, "check_cudnn_version", missing)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    out, _ = jax.eval_shape(lambda *x: jax.vjp(causal_attention, *x), x, x, x)
    assert out.shape == shape
    with pytest.raises(NotImplementedError, match=r"not installed: cuDNN is not detected"):
        jax.eval_shape(lambda *x: causal_attention(*x, implementation="cudnn"), x, x, x)


@pytest.mark.usefixtures("unchecked_annotations")
def test_wrong_arguments_are_named():
    q, k = jnp.zeros((2, 8, 6, 4)), jnp.zeros((2, 8, 4, 4))
    for arguments, options, message in (
        ((q, k, k), {}, "the key's 4 heads must divide the query's 6"),
        ((q, q[:, :6], q[:, :6]), {}, "the query has 8 tokens and the key 6"),
        ((q, q[..., :3], q), {}, "do not fit together"),
        ((q, q, q), {"implementation": "triton"}, "'triton' of causal_attention is unknown"),
        ((q, q[:, :6], q[:, :6]), {"chunks": (0, 1)}, "with chunks the query's tokens"),
    ):
        with pytest.raises(InputError, match=message):
            causal_attention(*arguments, **options)
