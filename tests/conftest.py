"""What the tests share: small configs, small texts, and programs run as a user runs them."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import jaxtyping
import pytest

from configs import common
from t6jax.config import ModelConfig

ROOT = pathlib.Path(__file__).parent.parent
TINY = {
    "vocab_size": 61,
    "num_layers": 3,
    "d_model": 24,
    "context_length": 32,
    "dtype": "float32",
    "attention": {
        "name": "tpa",
        "num_heads": 5,
        "head_dim": 8,
        "rank_q": 3,
        "rank_k": 2,
        "rank_v": 1,
    },
}
# the folder in which processes that the tests start keep what they have compiled, for the next one
COMPILED = "T6JAX_TESTS_COMPILED"
# JAX's option to compile fast what need not run fast: most of the tests' time would go into making
# tiny programs fast
UNOPTIMIZED = "JAX_DISABLE_MOST_OPTIMIZATIONS"
ON_CPU = os.environ.get("JAX_PLATFORMS") == "cpu"


def pytest_configure(config: pytest.Config) -> None:
    if COMPILED not in os.environ:  # where tests run in several processes, these inherit it
        os.environ[COMPILED] = tempfile.mkdtemp(prefix="t6jax-tests-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(COMPILED), ignore_errors=True))
    jax.config.update(UNOPTIMIZED.lower(), ON_CPU)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: one that came last would run alone, the other processes
    idle.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def optimized():
    """What the test compiles is compiled as users have it."""
    jax.config.update(UNOPTIMIZED.lower(), False)
    yield
    jax.config.update(UNOPTIMIZED.lower(), ON_CPU)


@pytest.fixture
def unchecked_annotations():
    """Annotations are not checked, as for users: wrong shapes reach the functions' own checks."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def tiny_model_config() -> ModelConfig:
    return ModelConfig.from_dict(TINY)


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> pathlib.Path:
    """A folder of a few text files, some nested, with what must be passed over beside them."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(12):
        path = folder / ("sub" if i % 3 == 0 else ".") / f"{i}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"line {j * (i + 1)} of file {i}, été\n" for j in range(60)))
    (folder / "empty.txt").write_text("")
    (folder / "binary.bin").write_bytes(b"\0\1\2")
    (folder / ".hidden").write_text("hidden")
    return folder


@pytest.fixture
def run_config(texts) -> dict:
    """A training run of a second: bytes, two layers."""
    return tiny_run(texts)


def tiny_run(texts: pathlib.Path) -> dict:
    config = common.get_config()
    config.update(steps=8, batch_size=4)
    config.model.update(
        vocab_size=257, num_layers=2, d_model=16, context_length=16, dtype="float32"
    )
    config.model.attention.update(num_heads=3, head_dim=4)
    config.data.update(path="", source=str(texts), tokenizer="bytes", validation_fraction=0.2)
    config.optimizer.update(
        learning_rate=1e-2, min_learning_rate=1e-3, warmup_steps=2, decay_steps=8
    )
    config.checkpoint.update(every_steps=4, keep=2)
    config.validation.update(every_steps=4, batches=2, batch_size=4)
    config.log.update(every_steps=1, tensorboard=False)
    return config.to_dict()


def program(name: str, *flags: str, **options) -> subprocess.CompletedProcess:
    """Runs train.py, eval.py or generate.py in a process of its own, output as text."""
    return subprocess.run(
        command(name, *flags), **process_options(), capture_output=True, check=False, **options
    )


def command(name: str, *flags: str) -> list[str]:
    return [sys.executable, str(ROOT / name), *flags]


def process_options() -> dict:
    kept = {
        "COMPILATION_CACHE_DIR": os.environ[COMPILED],
        "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    kept |= {"PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1", "PLATFORMS": "cpu"}
    environment = os.environ | {f"JAX_{name}": value for name, value in kept.items()}
    return {
        "cwd": ROOT,
        "env": environment | {UNOPTIMIZED: "1"},
        "text": True,
    }
