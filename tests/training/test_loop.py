"""How a run begins, and what it logs."""

import json

import pytest

from t6jax import InputError
from t6jax.config import RunConfig
from t6jax.runs import CONFIG, read_config, read_data_config, read_model_config
from t6jax.training import loop


def train(values: dict, workdir) -> None:
    loop.train(RunConfig.from_dict(values), workdir)


def logged(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_could_not_begin_takes_a_corrected_config(run_config, tmp_path):
    """The directory is a config's only from config.json on."""
    wrong = run_config | {"model": run_config["model"] | {"context_length": 9000}}
    with pytest.raises(InputError, match="too few tokens"):
        train(wrong, tmp_path)
    assert (tmp_path / "data").is_dir() and not (tmp_path / CONFIG).exists()
    run_config["steps"] = 3
    train(run_config, tmp_path)
    assert read_config(tmp_path)["model"]["context_length"] == 16
    with pytest.raises(InputError, match=r"model.context_length was 16, now 9000"):
        train(wrong, tmp_path)


def test_the_last_validation_is_logged_wherever_the_run_ends(run_config, tmp_path, capsys):
    run_config |= {"steps": 3}
    run_config["validation"]["every_steps"] = 2
    train(run_config, tmp_path)
    validated = {line["step"]: line["val_loss"] for line in logged(tmp_path) if "val_loss" in line}
    assert set(validated) == {2, 3}
    printed = capsys.readouterr().out
    # 2 batches of 4 rows of 16 tokens
    assert "evaluated 128 tokens" in printed and f"{validated[3]:.4f}" in printed
    assert "compiling the training step ..." in printed


def test_traced_steps_log_no_speed(run_config, tmp_path):
    train(run_config | {"steps": 12, "profile": "5:6"}, tmp_path)
    steps = [line for line in logged(tmp_path) if "train_loss" in line]
    timed = {line["step"] for line in steps if "tokens_per_second" in line}
    assert len(steps) == 12
    # the host launches two steps ahead: what it waits for the trace falls on the steps around too
    assert timed == {1, 2, 9, 10, 11, 12}


def test_a_runs_sections_are_read_by_themselves(run_config, tmp_path):
    config = RunConfig.from_dict(run_config)
    values = config.to_dict()
    del values["data"]["with_replacement"], values["optimizer"]  # as older runs wrote it
    (tmp_path / CONFIG).write_text(json.dumps(values))
    assert read_model_config(tmp_path) == config.model
    assert read_data_config(tmp_path) == config.data
    values["model"]["d_model"] = "wide"
    (tmp_path / CONFIG).write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"config.json: model.d_model must be an integer; got 'w"):
        read_model_config(tmp_path)
