"""On an NVIDIA GPU: cuDNN attention is the oracle's within bfloat16, and the whole road runs."""

import re
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t6jax.ops.attention import causal_attention
from tests.conftest import command, process_options
from tests.ops.attention.test_attention import reference
from tests.ops.decode.test_decode import algorithm_1, call, draw


@pytest.mark.parametrize("heads", [1, 47, 78])
def test_cudnn_attention_is_eq_3_2_within_bfloat16(heads):
    rng = np.random.default_rng(heads)
    arrays = [jnp.asarray(rng.standard_normal((2, 333, heads, 64)), jnp.bfloat16) for _ in range(3)]
    assert "cudnn" in jax.jit(causal_attention).lower(*arrays).as_text()
    want = reference(
        *(np.asarray(x, np.float64) for x in arrays), np.tril(np.ones((333, 333), bool))
    )
    error = np.linalg.norm(
        np.asarray(causal_attention(*arrays), np.float64) - want
    ) / np.linalg.norm(want)
    # P and the output are rounded to bfloat16 once each: an ulp is 2^-8, the root mean square of
    # rounding 2^-8 / sqrt(12)
    assert error < 4 * 2**-8 / np.sqrt(12)


def test_the_oracle_is_float32_on_the_gpu_too():
    f = draw(np.random.default_rng(0), 3, 2, 300, 47, 6, 2, 2, 64, 64)
    lengths = np.array([0, 17, 300], np.int32)
    want, _, largest = algorithm_1(f, lengths, 64**-0.5)
    got = call(f, jnp.asarray(lengths))
    # as in tests/ops/decode/test_decode.py; products rounded to TF32 would be off by 2^-11, a
    # thousand times more
    bound = 4 * np.finfo(np.float32).eps * ((64 + 8) * max(largest, 1) + 302)
    assert np.abs(got - want).max() < bound * np.abs(want).max() < 2**-11


def test_training_evaluating_and_generating_run_and_report_mfu(tmp_path):
    options = process_options()
    options["env"].pop("JAX_PLATFORMS")
    run = lambda *c: subprocess.run(command(*c), **options, capture_output=True, check=True).stdout
    small = [
        f"--config.{key}"
        for key in (
            "model.num_layers=2",
            "steps=40",
            "optimizer.decay_steps=600",
            "log.tensorboard=False",
        )
    ]
    bf16 = [
        "--config.model.dtype=bfloat16",
        "--config.model.attention.num_heads=47",
        "--config.model.attention.head_dim=64",
    ]
    out = run(
        "train.py",
        "--config=configs/quickstart.py",
        f"--workdir={tmp_path}",
        "--config.data.source=t6jax",
        *small,
        *bf16,
    )
    assert re.search(r"MFU \d+\.\d%", out), out
    first, last = (
        float(x)
        for x in re.findall(r"  loss (\d\.\d+)", out)[:: len(re.findall(r"  loss ", out)) - 1]
    )
    assert last < first - 0.3
    assert "model" in run("eval.py", f"--ckpt={tmp_path}")
    assert run("generate.py", f"--ckpt={tmp_path}", "--prompt=def ").startswith("def ")
