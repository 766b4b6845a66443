"""A mechanism in a file outside the package trains, loads, generates and is evaluated."""

import json
import shutil
import subprocess
import sys

import pytest

import t6jax
from t6jax import InputError, register
from t6jax.attention import MECHANISMS, TPAConfig
from t6jax.config.model import attention_from_dict
from tests.conftest import ROOT, process_options

FLAGS = ["--config.model.attention.name=gated", "--config.model.attention.module=gated"]


@pytest.fixture
def mechanisms():
    """What a test registers is not there for others."""
    before = dict(MECHANISMS)
    yield
    sys.modules.pop("gated", None)
    MECHANISMS.clear()
    MECHANISMS.update(before)


@pytest.mark.slow
@pytest.mark.usefixtures("mechanisms")
def test_it_goes_all_the_way(tmp_path, monkeypatch):
    shutil.copy(ROOT / "tests" / "programs" / "gated.py", tmp_path)
    options = process_options()
    options["env"] |= {"PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], **options, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    workdir = str(tmp_path / "run")
    config = ["--config=tests/configs/tiny.py", "--config.steps=12", *FLAGS]
    config.append("--config.model.attention.gate_scale=2")
    trained = run("train.py", *config, f"--workdir={workdir}")
    assert "step 12/12" in trained
    attention = json.loads((tmp_path / "run" / "config.json").read_text())["model"]["attention"]
    assert attention == {
        **{"name": "gated", "module": "gated", "num_heads": 3, "head_dim": 4},
        **{"head_norm": False, "gate_scale": 2.0},
    }
    evaluated = run("eval.py", f"--ckpt={workdir}", "--batches=2", "--batch_size=4")
    assert evaluated.splitlines()[-1] == trained.splitlines()[-1]
    assert run("generate.py", f"--ckpt={workdir}", "--prompt=def ", "--max_new_tokens=4")
    monkeypatch.syspath_prepend(tmp_path)
    model, loaded = t6jax.load(workdir)
    assert type(loaded.attention).__module__ == "gated" and loaded.attention.gate_scale == 2.0
    assert len(t6jax.generate(model, [[1, 2, 3]], 4)[0]) == 4
    # without its module the sentence says what to do
    options["env"]["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "eval.py", f"--ckpt={workdir}"],
        **options,
        capture_output=True,
        check=False,
    )
    assert "model.attention.module='gated', which registers 'gated', cannot be imp" in done.stderr


def test_what_cannot_be_registered_is_named():
    with pytest.raises(InputError, match="register takes a subclass of t6jax.AttentionConfig"):
        register(dict)

    class Mine(TPAConfig):
        name = "tpa"

    with pytest.raises(InputError, match=r"the name 'tpa' is t6jax.attention.tpa.TPAConfig's"):
        register(Mine)
    assert MECHANISMS["tpa"] is TPAConfig is register(TPAConfig)
    with pytest.raises(InputError, match="registered by t6jax.register in the module"):
        attention_from_dict({"name": "mine", "num_heads": 2, "head_dim": 4})
