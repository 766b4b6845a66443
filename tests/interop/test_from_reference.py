"""A published checkpoint's folder becomes a run's directory that eval.py and generate.py take."""

import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import t6jax
from t6jax import InputError
from t6jax.interop.from_reference import convert, read_parameters
from tests.conftest import ROOT, command, process_options
from tests.interop.test_reference import GOLDEN, load

OPTIONS = {"rope_table_dtype": "bfloat16", "tokenizer": "bytes"}


def published() -> tuple[dict[str, np.ndarray], dict]:
    """The golden T6's parameters with an embedding for the bytes tokenizer."""
    params, config, _ = load(next(p for p in GOLDEN if p.stem == "tpa"))
    params["lm_head.weight"] = np.resize(params["lm_head.weight"], (257, 48))
    return params, config | {"vocab_size": 257, "model_type": "gpt2", "architectures": ["GPT"]}


@pytest.fixture
def checkpoint(tmp_path) -> pathlib.Path:
    folder = tmp_path / "published"
    folder.mkdir()
    params, config = published()
    save_file(params, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run_program(*arguments: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "t6jax.interop.from_reference", *arguments]
    return subprocess.run(line, **process_options(), capture_output=True, check=False)


def test_the_run_directory_holds_the_model(checkpoint, tmp_path):
    said = convert(checkpoint, tmp_path / "run", **OPTIONS)
    model, config = t6jax.load(tmp_path / "run")
    assert said == f"{tmp_path / 'run'}: tpa, {config.parameter_count:,} parameters"
    assert config.rope_table_dtype == "bfloat16"
    tokens = jnp.arange(12)[None] % 257
    want = t6jax.from_reference(*published(), jnp.bfloat16)(tokens)
    np.testing.assert_array_equal(model(tokens), want)


@pytest.mark.slow
def test_the_programs_take_it_from_the_command_line(checkpoint, tmp_path):
    run = str(tmp_path / "run")
    done = run_program(str(checkpoint), run, "--tokenizer=bytes")
    assert done.returncode == 0, done.stderr
    for program, flags in (
        ("generate.py", ["--prompt=ab", "--max_new_tokens=3"]),
        ("eval.py", [f"--data={ROOT / 't6jax/model.py'}", "--batches=1"]),
    ):
        done = subprocess.run(
            command(program, f"--ckpt={run}", *flags),
            **process_options(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "model" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: checkpoint, out"),
        (["nowhere", "out"], "nowhere has neither model.safetensors nor pytorch_model.bin"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(arguments, message, tmp_path):
    done = run_program(*arguments)
    assert done.returncode == 1
    assert (
        done.stderr.startswith("error: ")
        and message in done.stderr
        and done.stderr.count("\n") == 1
    )


def test_a_runs_directory_is_not_overwritten(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "run", **OPTIONS)
    with pytest.raises(InputError, match="exists already: name a folder that does not"):
        convert(checkpoint, tmp_path / "run", **OPTIONS)


def test_a_conversion_that_fails_midway_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("t6jax.interop.from_reference.write_config", fail)
    with pytest.raises(OSError, match="disk full"):
        convert(checkpoint, tmp_path / "run", **OPTIONS)
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_broken_files_are_named(checkpoint, tmp_path):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is not a complete safetensors file"):
        convert(checkpoint, tmp_path / "run", **OPTIONS)
    assert list(tmp_path.iterdir()) == [checkpoint]
    save_file(published()[0], weights)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        convert(checkpoint, tmp_path / "run", **OPTIONS)
    (checkpoint / "config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"config\.json must hold a JSON object, not list"):
        convert(checkpoint, tmp_path / "run", **OPTIONS)
    (checkpoint / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        convert(checkpoint, tmp_path / "run", **OPTIONS)


def test_a_checkpoint_in_several_files_is_read_by_its_index(checkpoint):
    whole = read_parameters(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    half = len(whole) // 2
    parts = {
        "a.safetensors": dict(list(whole.items())[:half]),
        "b.safetensors": dict(list(whole.items())[half:]),
    }
    for name, part in parts.items():
        save_file(part, checkpoint / name)
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {k: name for name, part in parts.items() for k in part}})
    )
    read = read_parameters(checkpoint)
    assert read.keys() == whole.keys()
    assert all(np.array_equal(read[k], whole[k]) for k in whole)
    index.write_text(json.dumps({"weight_map": {"x": "../a.safetensors"}}))
    with pytest.raises(InputError, match="must map parameters to files next to it"):
        read_parameters(checkpoint)


def test_a_bin_without_pytorch_says_what_to_do(checkpoint, monkeypatch):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        InputError, match=r"pytorch_model\.bin needs PyTorch to be read: pip install torch"
    ):
        read_parameters(checkpoint)


@pytest.mark.torch
class TestBin:
    @pytest.fixture
    def torch(self):
        return pytest.importorskip(
            "torch", reason="PyTorch is needed only to read .bin: make test-torch"
        )

    @pytest.fixture
    def folder(self, checkpoint):
        (checkpoint / "model.safetensors").unlink()
        return checkpoint

    def test_it_gives_the_same_model(self, torch, folder, tmp_path):
        params, _ = published()
        torch.save({k: torch.tensor(v) for k, v in params.items()}, folder / "pytorch_model.bin")
        convert(folder, tmp_path / "run", **OPTIONS)
        tokens = jnp.arange(5)[None]
        want = t6jax.from_reference(*published(), jnp.bfloat16)(tokens)
        np.testing.assert_array_equal(t6jax.load(tmp_path / "run")[0](tokens), want)

    def test_bfloat16_keeps_its_bits(self, torch, folder):
        values = np.array([1.0, -0.333, 3e38], np.float32)
        torch.save({"x": torch.tensor(values).bfloat16()}, folder / "pytorch_model.bin")
        np.testing.assert_array_equal(read_parameters(folder)["x"], values.astype(jnp.bfloat16))

    def test_code_in_a_pickle_is_refused_not_run(self, torch, folder, tmp_path):
        class Harm:
            def __reduce__(self):
                return (pathlib.Path.touch, (tmp_path / "harmed",))

        torch.save({"x": Harm()}, folder / "pytorch_model.bin")
        with pytest.raises(InputError, match="is not a complete file of plain PyTorch tensors"):
            read_parameters(folder)
        assert not (tmp_path / "harmed").exists()

    def test_a_truncated_file_is_named(self, torch, folder):
        path = folder / "pytorch_model.bin"
        torch.save({"x": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(InputError, match=r"pytorch_model\.bin is not a complete file"):
            read_parameters(folder)
