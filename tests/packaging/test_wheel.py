"""The wheel, installed with only its core in an empty environment outside the checkout."""

import email
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "t6jax", "pallas_kernels")


def run(*command: str, **options) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installer(python: str | pathlib.Path) -> list[str]:
    """The command that installs into an environment: uv's, as in scripts/setup.sh, or pip's."""
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(python)]
    return [str(python), "-m", "pip", "install", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("wheel")
    # a copy: setuptools builds in the folder of the sources, and takes up what lies there
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        path, ignored = ROOT / name, shutil.ignore_patterns("__pycache__")
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=ignored)
        else:
            shutil.copy(path, source / name)
    if importlib.util.find_spec("uv"):
        build = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir"]
    else:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    run(*build, str(folder), str(source), cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_pins_no_version_and_its_core_is_small(wheel):
    with zipfile.ZipFile(wheel) as file:
        (name,) = (n for n in file.namelist() if n.endswith("METADATA"))
        metadata = email.message_from_bytes(file.read(name))
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    core = {r.name for r in requirements if r.marker is None}
    assert core == {"jax", "flax", "jaxtyping", "numpy", "optax", "orbax-checkpoint"}
    for r in requirements:
        development = r.marker is not None and 'extra == "test"' in str(r.marker)
        assert development or all(s.operator in (">=", "!=") for s in r.specifier), r
    assert set(metadata.get_all("Provides-Extra")) >= {
        *("data", "train", "eval", "interop", "cuda12", "cuda13", "triton", "test", "docs")
    }


def test_the_core_decodes_loads_and_generates_outside_the_checkout(wheel, tmp_path):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=importlib.util.find_spec("uv") is None)
    python = environment / "bin" / "python"
    run(*installer(python), "-c", str(ROOT / "requirements.txt"), str(wheel), cwd=tmp_path)
    script = shutil.copy(ROOT / "tests" / "packaging" / "core.py", tmp_path)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    clean["JAX_PLATFORMS"] = "cpu"
    output = run(str(python), script, str(tmp_path / "run"), cwd=tmp_path, env=clean)
    assert output == "the core works\n"
    command = subprocess.run(
        [environment / "bin" / "lm_eval"], env=clean, capture_output=True, text=True, check=False
    )
    assert command.returncode == 1
    assert command.stderr == (
        "error: the Python package lm_eval is not installed: pip install 't6jax[eval]'\n"
    )
