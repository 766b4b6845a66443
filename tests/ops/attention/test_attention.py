"""Attention over whole sequences is eq. 3.2 under a causal mask, and stays inside segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t6jax.ops.attention import Segments, causal_attention
from t6jax.ops.attention import api as causal_attention_module
from t6jax.parallel import remat, sequence

EPSILON = np.finfo(np.float32).eps


def reference(q, k, v, seen):
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    logits = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    logits = np.where(seen, logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", p / p.sum(-1, keepdims=True), v)


def test_causal_attention_is_eq_3_2_within_segments():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 9, 5, 8)).astype(np.float32) for _ in range(3))
    segments = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0] * 9])
    causal = np.tril(np.ones((9, 9), bool))
    same = segments[:, None, :, None] == segments[:, None, None, :]
    bound = 64 * EPSILON * np.abs(v).max()  # sums of 8 and 9 terms, scores of a few units
    arrays = [jnp.asarray(x) for x in (q, k, v)]
    np.testing.assert_allclose(
        causal_attention(*arrays), reference(q, k, v, causal), rtol=0, atol=bound
    )
    masked = causal_attention(*arrays, segment_ids=jnp.asarray(segments))
    np.testing.assert_allclose(masked, reference(q, k, v, causal & same), rtol=0, atol=bound)


def test_continuations_share_a_context_and_do_not_see_each_other():
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((1, 9, 5, 8)).astype(np.float32) for _ in range(3))
    own, context = np.array([[1, 1, 1, 2, 2, 3, 3, 4, 5]]), np.array([[1, 1, 1, 1, 1, 1, 1, 4, 4]])
    seen = np.tril(np.ones((9, 9), bool))
    seen[5:7, 3:5] = False  # the second continuation does not see the first
    seen[7:, :7] = False  # nor the second context, with its continuation, anything of the first
    got = causal_attention(
        *(jnp.asarray(x) for x in (q, k, v)),
        segment_ids=Segments(jnp.asarray(own), jnp.asarray(context)),
    )
    np.testing.assert_allclose(
        got, reference(q, k, v, seen), rtol=0, atol=64 * EPSILON * np.abs(v).max()
    )


def test_heads_share_keys_in_groups_and_values_may_have_another_width():
    rng = np.random.default_rng(1)
    q = rng.standard_normal((2, 9, 6, 8)).astype(np.float32)
    k, v = (rng.standard_normal((2, 9, 3, d)).astype(np.float32) for d in (8, 5))
    got = causal_attention(*(jnp.asarray(x) for x in (q, k, v)))
    want = reference(
        q, np.repeat(k, 2, axis=2), np.repeat(v, 2, axis=2), np.tril(np.ones((9, 9), bool))
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=64 * EPSILON * np.abs(v).max())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "limit", [1, 3 * 9 * 9 * 4 * 4, 5 * 9 * 9 * 4 * 3]
)  # scores: of a group; of four, with a rest; of five
def test_scores_taken_some_at_a_time_give_the_same(monkeypatch, masked, limit):
    rng = np.random.default_rng(3)
    q = rng.standard_normal((2, 9, 9, 8)).astype(np.float32)
    k, v = (rng.standard_normal((2, 9, 3, d)).astype(np.float32) for d in (8, 5))
    segments = jnp.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0] * 9]) if masked else None
    loss = lambda *x: jnp.sum(jnp.sin(causal_attention(*x, segment_ids=segments)))
    run = lambda: jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)
    whole = run()
    monkeypatch.setattr(causal_attention_module, "KEPT_SCORES", limit)
    assert "scan" in str(jax.make_jaxpr(loss)(q, k, v))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=16 * EPSILON), run(), whole
    )


def test_many_scores_are_not_kept_for_the_gradient():
    arrays = [jax.ShapeDtypeStruct((8, 1024, 64, 64), jnp.float32)] * 3  # 2 GiB of scores
    gradient = jax.jit(jax.grad(lambda *x: causal_attention(*x).sum(), argnums=(0, 1, 2)))
    assert (
        gradient.lower(*arrays).compile().memory_analysis().temp_size_in_bytes
        < 6 * causal_attention_module.KEPT_SCORES
    )


def on_a_gpu(monkeypatch):
    """As far as tracing goes."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(causal_attention_module, "on_hopper", lambda: True)
    monkeypatch.setattr(causal_attention_module.cudnn, "check_cudnn_version", lambda: 91000)


def text_of(shape, dtype=jnp.bfloat16):
    return str(jax.make_jaxpr(causal_attention)(*[jax.ShapeDtypeStruct((*shape, 64), dtype)] * 3))


def gradient_text(shape, attention=causal_attention, sharding=None, **options):
    arrays = [jax.ShapeDtypeStruct((*shape, 64), jnp.bfloat16, sharding=sharding)] * 3
    loss = lambda *x: attention(*x, **options).astype(jnp.float32).sum()
    return str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*arrays))


def test_the_gradient_kernel_is_taken_where_heads_fill_the_gpu(monkeypatch):
    on_a_gpu(monkeypatch)
    for scale in (None, -0.3, 0):
        assert "attention_gradient" in gradient_text((24, 1024, 78), scale=scale)
    for shape in ((32, 1024, 47), (6, 4096, 78), (1, 32768, 25)):
        assert "attention_gradient" in gradient_text(shape)
    for shape in (
        (24, 1000, 78),
        (1, 1024, 7),
        (1, 32768, 7),
    ):  # no whole blocks; idle multiprocessors
        assert "attention_gradient" not in gradient_text(shape)
    assert "attention_gradient" not in gradient_text(
        (24, 1024, 78), segment_ids=jnp.zeros((24, 1024), jnp.int32)
    )


def test_the_forward_kernel_is_taken_where_blocks_of_queries_fill_the_gpu(monkeypatch):
    on_a_gpu(monkeypatch)
    for shape in ((24, 1024, 78), (32, 1024, 47), (6, 4096, 78), (3, 8192, 11)):
        assert "attention_forward" in text_of(shape)
    for shape in ((24, 1024, 78), (32, 1024, 47), (6, 4096, 78)):
        assert "attention_forward" in gradient_text(shape)
    for shape in ((24, 1000, 78), (1, 1024, 7)):  # no whole blocks; idle multiprocessors
        assert "attention_forward" not in text_of(shape)
    assert "attention_forward" not in gradient_text((1, 32768, 7)), (
        "cuDNN's gradient wants what its own forward pass keeps"
    )
    assert "attention_forward" not in text_of((24, 1024, 78), jnp.float16), (
        "whose range is too small for the kernel's weights"
    )


def test_the_gradient_behind_the_forward_kernel_alone_is_cudnns(monkeypatch):
    """Where ours does not pay: what the gradient is asked of takes cuDNN's forward pass too."""
    cudnn = lambda q, k, v, scale: scale * jnp.tanh(q) * k + jnp.sin(v)
    monkeypatch.setattr(causal_attention_module, "_cudnn", cudnn)
    x = [jnp.arange(6.0) + i for i in range(3)]
    kernels = causal_attention_module.Kernels(forward=True, gradient=False)
    loss = lambda f: jax.jit(jax.grad(lambda *x: (f(*x) ** 2).sum(), argnums=(0, 1, 2)))
    got = loss(lambda *x: causal_attention_module._with_kernels(*x, None, 0.3, kernels))(*x)
    for a, b in zip(got, loss(lambda *x: cudnn(*x, 0.3))(*x), strict=True):
        np.testing.assert_allclose(a, b, rtol=4 * EPSILON)


def test_a_mesh_of_one_device_keeps_nothing_from_the_kernels(monkeypatch):
    on_a_gpu(monkeypatch)
    mesh = jax.sharding.AbstractMesh(
        (1, 1), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    with jax.sharding.use_abstract_mesh(mesh):
        text = gradient_text((24, 1024, 25), sharding=jax.NamedSharding(mesh, jax.P("data")))
    assert "attention_forward" in text and "attention_gradient" in text


def test_arrays_spread_over_a_mesh_go_to_cudnn_alone(monkeypatch):
    """Under shard_map each device has its own arrays, which the kernel takes."""
    on_a_gpu(monkeypatch)
    mesh = jax.sharding.AbstractMesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    rows = jax.P("data")
    own = jax.shard_map(causal_attention, in_specs=rows, out_specs=rows, check_vma=False)
    with jax.sharding.use_abstract_mesh(mesh):
        spread = jax.NamedSharding(mesh, rows)
        assert "attention_gradient" not in gradient_text((48, 1024, 78), sharding=spread)
        assert "attention_gradient" in gradient_text((48, 1024, 78), own, sharding=spread)


def test_along_a_split_sequence_the_kernels_are_taken_where_nothing_else_is_masked(monkeypatch):
    on_a_gpu(monkeypatch)
    mesh = jax.sharding.AbstractMesh(
        (2,), ("sequence",), axis_types=(jax.sharding.AxisType.Explicit,)
    )

    def of_own(query, key, value, **options):
        return causal_attention(sequence.local_tokens(query), key, value, **options)

    attention = jax.shard_map(
        of_own, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(None, "sequence"), check_vma=False
    )
    masked = lambda *x: jax.shard_map(
        lambda *y: of_own(*y[:3], segment_ids=y[3]),
        mesh=mesh,
        in_specs=jax.P(),
        out_specs=jax.P(None, "sequence"),
        check_vma=False,
    )(*x, jnp.zeros(x[0].shape[:2], jnp.int32))
    with jax.sharding.use_abstract_mesh(mesh):
        text = gradient_text((1, 8192, 7), attention)
        assert "attention_forward" in text and "attention_gradient" in text
        for text in (
            gradient_text((1, 8192 - 256, 7), attention),
            gradient_text((1, 8192, 7), masked),
        ):
            assert "attention_forward" not in text and "attention_gradient" not in text


def test_rematerialisation_of_what_is_cheap_keeps_attention(monkeypatch):
    """Where our kernel computes the gradient, which cannot be told by cuDNN's name."""

    def stand_in(q, k, v, scale):
        return jax.lax.erf_inv(q + k + v), jax.lax.erf_inv(q[..., 0].swapaxes(1, 2))

    on_a_gpu(monkeypatch)
    monkeypatch.setattr(causal_attention_module, "_cudnn_with_lse", stand_in)
    gradient = lambda q, k, v, out, lse, grad, chunks, **_: (
        [out * grad * lse.swapaxes(1, 2)[..., None]] * 3
    )
    monkeypatch.setattr(causal_attention_module.gradient, "attention_gradient", gradient)
    ours = lambda q, k, v, chunks, scale, sms: stand_in(q, k, v, scale)
    monkeypatch.setattr(causal_attention_module.forward, "attention_forward", ours)
    x = jnp.ones((2, 4, 3, 8), jnp.bfloat16)
    for forward in (False, True):
        kernels = causal_attention_module.Kernels(forward, gradient=True)
        f = lambda w, x, kernels=kernels: causal_attention_module._with_kernels(
            *[jnp.tanh(x) * w] * 3, None, 1.0, kernels
        ).sum()
        for policy, times in (
            ("dots", 2),
            ("full", 3),
        ):  # two results, of which one is not wanted where they come again
            text = str(
                jax.make_jaxpr(jax.grad(jax.checkpoint(f, policy=remat.policy(policy))))(2.0, x)
            )
            assert text.count("erf_inv") == times, (kernels, policy)
