"""benchmarks.train and benchmarks.scaling, on a CPU and tiny models."""

import json
import subprocess
import sys

import pytest

from benchmarks import train, train_cases, train_tables
from benchmarks.record import read
from tests.conftest import process_options

TINY = {"num_layers": 1, "d_model": 64, "vocab_size": 512, "context_length": 32, "unroll": False}


def test_cases_are_the_papers_models():
    xl, rows, keys = train_cases.CASES["T6 XL"]
    model = train_cases.config_of(xl, rows, keys).model
    assert (model.num_layers, model.d_model, model.attention.num_heads) == (48, 1600, 78)
    assert model.context_length == train_cases.CONTEXT and model.remat == "none" and model.unroll
    for name, (layers, d_model, heads, rows) in train_cases.TORCH.items():
        paper, case_rows, keys = train_cases.CASES[name]
        model = train_cases.config_of(paper, case_rows, keys).model
        assert list(map(int, (layers, d_model, heads, rows))) == [
            model.num_layers,
            model.d_model,
            model.attention.num_heads,
            case_rows,
        ]


@pytest.mark.slow
def test_a_case_is_measured():
    found = train.measure(
        "MHA XL width, 12 layers", TINY | {"batch_size": 2, "remat": "dots"}, windows=2, steps=1
    )
    assert set(found) == set(read("train_nvidia_h200.json")["results"][0])
    assert found["rows"] == 2 and found["layers"] == 1 and found["remat"] == "dots"
    assert len(found["step_milliseconds"]) == 2 and found["tokens_per_second"] > 0
    assert 0 < found["last_loss"] < 10
    assert found["flops_per_second"] == found["tokens_per_second"] * found["flops_per_token"]


@pytest.mark.exhaustive
def test_scaling_over_two_devices_gives_one_devices_losses(tmp_path):
    options = process_options()
    options["env"] |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    flags = ["--tiny", "--rows=8", "--steps=4", "--layouts", "one", "fsdp 2", f"--out={tmp_path}"]
    run = [sys.executable, "-m", "benchmarks.scaling", *flags]
    subprocess.run(run, **options, check=True, capture_output=True)
    (path,) = tmp_path.glob("scaling_*.json")
    one, two = json.loads(path.read_text())["results"]
    assert two["devices"] == 2 and two["collectives"]
    # float32 sums in another order
    assert two["largest_relative_difference_of_losses"] < 1e-5 and one["losses"]


def test_tables_and_plot_show_every_case(tmp_path):
    record = read("train_nvidia_h200.json")
    speed, kinds = train_tables.speed(record), train_tables.kinds(record)
    for r in record["results"]:
        assert f"| {r['name']} | {r['rows']} | {r['tokens_per_second']:,.0f} |" in speed
        assert f"| {r['name']} |" in kinds
    assert train_tables.draw(record, tmp_path).stat().st_size > 10_000
    assert train_cases.label("T6 XL") == "T6 XL (H = 78)"
