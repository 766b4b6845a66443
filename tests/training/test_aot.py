"""What --dry_run says of memory, against what a GPU took."""

import pytest

from benchmarks.record import read
from benchmarks.train_cases import CASES, config_of
from t6jax.parallel.mesh import MESH_AXES
from t6jax.training.aot import compile_for
from t6jax.training.dry_run import config_on


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.exhaustive)
        for n in ("T6 XL width, 12 layers", "T6 medium")
    ],
)
def test_the_memory_of_a_dry_run_is_near_what_a_gpu_took(name):
    record = read("train_nvidia_h200.json")
    taken = next(r["peak_bytes"] for r in record["results"] if r["name"] == name)
    config = config_of(*CASES[name])
    plan = compile_for(config_on(config, dict.fromkeys(MESH_AXES, 1)), 1)
    # "about as much, or up to a quarter less", as --dry_run says
    assert 0.95 < (plan["arguments"] + plan["temporary"]) / taken < 1 / 0.75
