"""A model is loaded as it was saved, or not at all."""

import json

import flax.nnx as nnx
import numpy as np
import orbax.checkpoint as ocp
import pytest

from t6jax import T6, InputError, load
from t6jax.checksums import NAME
from t6jax.config import ModelConfig
from t6jax.runs import CHECKPOINTS, CONFIG, PARAMETERS, write_checksums, write_config
from tests.conftest import TINY


@pytest.fixture(scope="module")
def model() -> T6:
    config = ModelConfig.from_dict(TINY | {"num_layers": 1})
    return T6(config, rngs=nnx.Rngs(0))


@pytest.fixture
def run(model, tmp_path):
    config = {"model": model.config.to_dict()}
    folder = tmp_path / CHECKPOINTS / "5"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / PARAMETERS, nnx.to_pure_dict(nnx.state(model)))
    write_checksums(folder, config)
    write_config(tmp_path, config)
    return tmp_path


def test_a_run_is_loaded_without_a_warning(run, model, recwarn):
    loaded, config = load(run)
    assert config == model.config and not recwarn.list
    np.testing.assert_array_equal(loaded.embedding[...], model.embedding[...])


def test_a_flipped_bit_of_the_parameters_is_not_loaded(run):
    folder = run / CHECKPOINTS / "5"
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with (
        pytest.warns(UserWarning, match=f"5 is damaged and is passed over: .*{path.name}"),
        pytest.raises(InputError, match="no checkpoint in .* can be read"),
    ):
        load(run)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"rope_base": 20_000.0}, r"model.rope_base is 20000.0, not 10000.0"),
        ({"rope_table_dtype": "bfloat16"}, r"model.rope_table_dtype is 'bfloat16', not 'float32'"),
    ],
)
def test_an_edited_config_is_refused(run, model, edit, message):
    values = model.config.to_dict()
    assert set(edit) <= set(values)
    write_config(run, {"model": values | edit})
    with pytest.raises(InputError, match=rf"{CONFIG} is not the config that step 5 .*\({message}"):
        load(run)
    write_config(run, {"model": values | {"remat": "full"}})  # how it runs, not what it is
    load(run)


def test_a_run_without_checksums_is_loaded_with_a_warning(run):
    (run / CHECKPOINTS / "5" / NAME).unlink()
    with pytest.warns(UserWarning, match=f"has no {NAME}.*read unchecked"):
        load(run)


@pytest.mark.parametrize("text", ["[]", "5", "null", '"model"', '{"model": []}', "{}", "[" * 10**5])
def test_a_config_that_is_no_config_is_named(run, text):
    (run / CONFIG).write_text(text)
    with pytest.raises(InputError, match=CONFIG):
        load(run)
    (run / CONFIG).write_bytes(json.dumps({"model": {}}).encode() + b"\xff")
    with pytest.raises(InputError, match=CONFIG):
        load(run)
