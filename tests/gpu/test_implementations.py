"""On an NVIDIA GPU: every implementation of decode and attention passes the tests of its op."""

import jax
import jax.numpy as jnp
import pytest

from tests.ops.attention.base import CASES as ATTENTION_CASES
from tests.ops.attention.base import AttentionTests
from tests.ops.decode.base import DecodeTests

IS_HOPPER = getattr(jax.devices()[0], "compute_capability", None) == "9.0"
hopper = pytest.mark.skipif(not IS_HOPPER, reason="needs a Hopper GPU")


@hopper
class TestDecodeByMosaicGPU(DecodeTests):
    implementation = "mosaic_gpu"
    dtype = jnp.bfloat16


class TestDecodeByTriton(DecodeTests):
    implementation = "triton"
    dtype = jnp.bfloat16


@hopper
class TestDecodeByMosaicGPUInFloat16(DecodeTests):
    implementation = "mosaic_gpu"
    dtype = jnp.float16


class TestDecodeByTheFastest(DecodeTests):
    implementation = None
    dtype = jnp.bfloat16


class TestDecodeByXLA(DecodeTests):
    """In float32: products are not rounded to TF32."""

    implementation = "xla"


@hopper
class TestAttentionByMosaicGPU(AttentionTests):
    implementation = "mosaic_gpu"
    dtype = jnp.bfloat16
    takes = frozenset(
        [
            *("one block", "many heads", "one head", "negative scale", "no scale"),
            *("first device's chunks", "second device's chunks"),
        ]
    )


class TestAttentionByCuDNN(AttentionTests):
    implementation = "cudnn"
    dtype = jnp.bfloat16
    takes = frozenset(ATTENTION_CASES) - {"one token"}


class TestAttentionByTheFastest(AttentionTests):
    implementation = None
    dtype = jnp.bfloat16


class TestAttentionByXLA(AttentionTests):
    implementation = "xla"
    dtype = jnp.bfloat16
