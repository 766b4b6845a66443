"""Numbers that are not finite are not applied, lack of memory is a sentence, and a trace of some
steps is written.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t6jax import InputError
from t6jax.config import RunConfig
from t6jax.parallel.mesh import make_mesh
from t6jax.runs import checkpoint_steps
from t6jax.training import loop
from t6jax.training.failures import out_of_memory
from t6jax.training.step import Trainer


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def poisoned(monkeypatch):
    """Trainer's loss, not a number for the batches of these numbers (counted by the state's step,
    from 0).
    """

    def poison(bad):
        step = Trainer._step

        def with_poison(self, state, windows):
            factor = jnp.where(jnp.isin(state.step, jnp.asarray(sorted(bad))), jnp.nan, 1.0)
            loss_and_grads = self._loss_and_grads
            poisoned = lambda *a: jax.tree.map(lambda x: x * factor, loss_and_grads(*a))
            with monkeypatch.context() as m:
                m.setattr(self, "_loss_and_grads", poisoned)
                return step(self, state, windows)

        monkeypatch.setattr(Trainer, "_step", with_poison)

    return poison


def test_a_step_that_is_not_finite_changes_nothing_but_the_step(run_config, poisoned):
    poisoned({1})
    t = Trainer(RunConfig.from_dict(run_config), make_mesh(run_config["mesh"]))
    tokens = np.random.default_rng(0).integers(0, 257, (4, 17)).astype(np.int32)
    host = lambda state: jax.tree.map(np.array, (state.params, state.opt_state))
    state, _ = t.step(t.create(jax.random.key(0)), tokens)
    before = host(state)
    state, metrics = t.step(state, tokens)
    assert np.isnan(metrics["train_loss"]) and int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, host(state), before)
    state, metrics = t.step(state, tokens)
    assert np.isfinite(metrics["train_loss"])
    assert not np.array_equal(state.params["embedding"], before[0]["embedding"])


def test_a_run_goes_on_past_such_steps_until_there_are_too_many_in_a_row(
    run_config, poisoned, tmp_path, capsys
):
    poisoned({1, 6, 7, 8, 9})
    run_config |= {"steps": 12, "stop_after_not_finite": 4, "profile": "2:3"}
    with pytest.raises(
        InputError,
        match=r"not finite in 4 steps in a row, up to step 10: .* the checkpoint of step 4 is kept",
    ):
        loop.train(RunConfig.from_dict(run_config), tmp_path)
    assert checkpoint_steps(tmp_path) == [4], "the one due at step 8 waits"
    events = [line for line in lines(tmp_path) if "event" in line]
    want = [(2, [4, 7], 1), (7, [24, 27], 1), (8, [28, 31], 2), (9, [32, 35], 3), (10, [36, 39], 4)]
    assert [(e["step"], e["windows"], e["in_a_row"]) for e in events] == want
    losses = [
        line["step"] for line in lines(tmp_path) if "train_loss" in line and "event" not in line
    ]
    assert losses == [1, 3, 4, 5, 6]
    assert (
        "step 2: loss nan, gradient norm nan: not applied (1 in a row; windows 4 to 7"
        in capsys.readouterr().out
    )
    (trace,) = (tmp_path / "profile").rglob(
        "*.xplane.pb"
    )  # what XProf and TensorBoard's profile plugin read
    content = trace.read_bytes()
    assert b"train" in content and b"step_num" in content


def test_out_of_memory_says_what_to_lower(run_config):
    message = (
        r"ran out of memory \(.*\): raise accumulation_steps=1, .*set model.remat=dots or full"
    )
    with pytest.raises(InputError, match=message), out_of_memory(RunConfig.from_dict(run_config)):
        jnp.zeros((2**40, 2**10)).block_until_ready()  # 4 PiB: more than any machine's
    with pytest.raises(jax.errors.JaxRuntimeError), out_of_memory(RunConfig.from_dict(run_config)):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_steps_that_a_run_is_past_or_never_comes_to_are_not_traced_without_a_word(
    run_config, tmp_path, capsys
):
    run_config["profile"] = "8:9"
    with pytest.raises(InputError, match="profile='8:9' must end at steps=8 or before"):
        loop.train(RunConfig.from_dict(run_config), tmp_path)
    run_config |= {"steps": 3, "profile": ""}
    loop.train(RunConfig.from_dict(run_config), tmp_path)
    run_config |= {"steps": 4, "profile": "3:4"}
    loop.train(RunConfig.from_dict(run_config), tmp_path)
    assert "profile='3:4' is not traced: the run is past step 3 already" in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()
