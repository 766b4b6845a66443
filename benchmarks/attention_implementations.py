"""The attention implementations that benchmarks.attention times, each a function of Q, K and V."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention_mgpu

from t6jax.ops.attention import causal_attention

Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# name: (rows, tokens, heads, features)
SHAPES = {
    "T6 XL": (24, 1024, 78, 64),
    "T6 medium": (32, 1024, 47, 64),
    "MHA XL": (24, 1024, 25, 64),
    "T6 XL, short": (96, 256, 78, 64),
    "T6 XL, longer": (12, 2048, 78, 64),
    "T6 XL, long": (6, 4096, 78, 64),
}
OURS = "t6jax", "cuDNN"  # what t6jax itself runs, which must not fail


class Candidate(NamedTuple):
    """An implementation: `make` builds it, which may fail where a library is missing."""

    name: str
    make: Callable[[], Attention]
    dtype: Any = jnp.bfloat16
    backward: bool = True


def candidates(shape: str) -> Iterator[Candidate]:
    """What is timed on a shape; other libraries on T6 XL's only."""
    yield Candidate(OURS[0], lambda: causal_attention)
    yield Candidate(OURS[1], lambda: cudnn)
    if shape != "T6 XL":
        return
    for blocks in ((64, 128, 2), (128, 128, 2), (128, 64, 2)):
        make = functools.partial(jax_mosaic, *blocks)
        yield Candidate(f"JAX Mosaic GPU {blocks}", make, jnp.float16, backward=False)
    yield Candidate("tokamax", tokamax)
    forwards = itertools.product((64, 128), (64, 128), (2,))
    backwards = (64, 64, 2, 1), (64, 128, 2, 2), (128, 64, 2, 2), (64, 64, 3, 2)
    for forward, backward in zip(forwards, backwards, strict=True):
        make = functools.partial(tokamax, forward, backward)
        yield Candidate(f"tokamax {forward}, {backward}", make)


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """cuDNN's flash attention, by way of JAX."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def formula(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal softmax attention in float32, row by row to save memory."""

    def row(arrays):
        q, k, v = (x.astype(jnp.float32)[None] for x in arrays)
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")[0]

    return jax.lax.map(jax.checkpoint(row), (q, k, v))


def jax_mosaic(block_q: int, block_kv: int, steps: int) -> Attention:
    """The Pallas Mosaic GPU attention that comes with JAX; it does not scale the logits."""
    config = attention_mgpu.TuningConfig(
        block_q=block_q, block_kv=block_kv, max_concurrent_steps=steps, causal=True
    )
    return lambda q, k, v: attention_mgpu.attention(q * q.shape[-1] ** -0.5, k, v, config)


def tokamax(
    forward: tuple[int, int, int] | None = None, backward: tuple[int, int, int, int] | None = None
) -> Attention:
    """tokamax's attention.

    Args:
        forward: block_q, block_kv, num_stages, or None for its own choice.
        backward: block_q, block_kv, num_stages, compute_wgs, or None for its own choice.
    """
    from tokamax._src.ops.attention import (  # pyright: ignore[reportMissingImports] # optional
        pallas_mosaic_gpu,
        pallas_mosaic_gpu_kernel_sm90,
        pallas_mosaic_gpu_vjp,
    )
    from tokamax._src.ops.attention.pallas_mosaic_gpu_vjp_common import (  # pyright: ignore[reportMissingImports] # optional
        Config,
    )

    options, vjp_options = {}, {}
    if forward:
        q, kv, stages = forward
        options["config"] = pallas_mosaic_gpu_kernel_sm90.Config(
            block_q=q, block_kv=kv, num_stages=stages
        )
    if backward:
        q, kv, stages, groups = backward
        blocks = {"block_q_dkv": q, "block_kv_dkv": kv, "block_q_dq": q, "block_kv_dq": kv}
        vjp_options["config"] = Config(**blocks, num_stages=stages, compute_wgs=groups)
    vjp = pallas_mosaic_gpu_vjp.PallasMosaicGpuFlashAttentionVjp(**vjp_options)
    attention = pallas_mosaic_gpu.PallasMosaicGpuFlashAttention(**options, vjp=vjp)
    return functools.partial(attention, is_causal=True)
