"""Every benchmark is a program with a --help, and says where it needs a GPU."""

import subprocess
import sys

import pytest

from tests.conftest import process_options

PROGRAMS = (
    "attention",
    "compare",
    "data",
    "decode",
    "evaluation",
    "layouts",
    "report",
    "scaling",
    "train",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_has_help(name):
    run = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    text = subprocess.run(run, **process_options(), capture_output=True, check=True).stdout
    assert f"python -m benchmarks.{name}" in text and "--help" in text


@pytest.mark.parametrize("name", ["attention", "decode"])
def test_without_a_gpu_it_says_so(name, monkeypatch, capsys):
    module = __import__(f"benchmarks.{name}", fromlist=["main"])
    monkeypatch.setattr("sys.argv", [name])
    if name == "decode":
        monkeypatch.setattr(module, "nvidia_smi", lambda field: None)
    with pytest.raises(SystemExit):
        module.main()
    assert "this needs an NVIDIA GPU" in capsys.readouterr().err
