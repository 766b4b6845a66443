"""The README tells the truth: its snippets run, its commands exist with the flags they show."""

import re
import subprocess
import sys

import pytest

from benchmarks import report
from configs import common
from t6jax.data.corpus import check_mixture
from tests.conftest import ROOT, process_options, program

README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(snippet):
    exec(compile(snippet, "README.md", "exec"), {})


def test_config_keys_in_the_readme_exist():
    config = common.get_config()
    for line in re.findall(r"^\| (`.*?) \|", README, re.M):
        section = ""
        for key in re.findall(r"`(.*?)`", line):
            key = section + key if key.startswith(".") else key
            section = key.split(".")[0] if "." in key else ""
            found = config
            for part in key.split("."):
                assert part in found, key
                found = found[part]


@pytest.mark.parametrize("path", report.FILES, ids=lambda path: path.name)
def test_the_measured_tables_are_those_of_the_recorded_results(path):
    text = path.read_text()
    assert "<!-- benchmarks.report: " in text and report.with_tables(text) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train.py", "eval.py", "generate.py"])
def test_flags_in_the_readme_exist(name):
    help_text = program(name, "--help").stdout
    commands = re.findall(rf"^    python {name} (.*?)(?:  +#.*)?$", README, re.M)
    flags = {flag for c in commands for flag in re.findall(r"--(\w+)(?![\w.])", c)}
    assert commands and all(re.search(rf"--(\[no\])?{flag}\b", help_text) for flag in flags), flags


@pytest.mark.parametrize("name", ["prepare", "train_tokenizer", "verify"])
def test_flags_of_the_data_programs_in_the_readme_exist(name):
    run = [sys.executable, "-m", f"t6jax.data.{name}", "--help"]
    help_text = subprocess.run(run, **process_options(), capture_output=True, check=True).stdout
    commands = re.findall(rf"^    python -m t6jax.data.{name} (.*?)(?:  +#.*)?$", README, re.M)
    flags = {flag for c in commands for flag in re.findall(r"--(\w+)", c)}
    assert commands and all(re.search(rf"--{flag}\b", help_text) for flag in flags), flags


def test_the_readmes_mixture_is_one():
    config = common.get_config()
    (line,) = re.findall(r"^    (config.data.mixture = .*)$", README, re.M)
    exec(line, {"config": config})
    check_mixture(config.to_dict()["data"])
