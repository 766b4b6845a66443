"""No decode kernel reads or writes outside its arrays, by compute-sanitizer's memcheck."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.gpu.conftest import HOPPER
from tests.gpu.memcheck import CASES

SANITIZER = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"


@pytest.mark.slow
@pytest.mark.skipif(
    not pathlib.Path(SANITIZER).exists(), reason="needs compute-sanitizer, of the CUDA toolkit"
)
@pytest.mark.parametrize("kernel", ["mosaic_gpu", "triton"])
def test_the_kernels_stay_inside_their_arrays(kernel):
    if kernel == "mosaic_gpu" and not HOPPER:
        pytest.skip("needs a Hopper GPU")
    if kernel == "triton":
        pytest.importorskip("jax_triton")
    command = [
        SANITIZER,
        "--tool",
        "memcheck",
        "--error-exitcode",
        "9",
        sys.executable,
        "-m",
        "tests.gpu.memcheck",
        kernel,
    ]
    # arrays that are allocated one by one have nothing readable behind them
    env = os.environ | {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}
    run = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0 and "ERROR SUMMARY: 0 errors" in run.stdout, (
        run.stdout[-4000:] + run.stderr[-2000:]
    )
    assert run.stdout.count(f"{kernel} CacheLayout(") == len(CASES), "every case ran"
