"""Numbers that are not finite are not applied, lack of memory is a sentence, and a trace of some
steps is written.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t6jax import InputError
from t6jax.config import RunConfig
from t6jax.parallel.mesh import make_mesh
from t6jax.runs import checkpoint_steps
from t6jax.training import loop
from t6jax.training.failures import NonFiniteSteps, out_of_memory
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


GOOD, BAD = np.zeros((4, 17), np.int32), np.ones((4, 17), np.int32)


def simple_trainer(run_config: dict, what: str) -> Trainer:
    """A trainer whose gradient is 1 everywhere; for BAD batches the loss, or one number of the
    gradient, is not finite, the other is.
    """
    run_config["model"]["num_layers"] = 1
    t = Trainer(RunConfig.from_dict(run_config), make_mesh(run_config["mesh"]))

    def loss_and_grads(params, windows):
        bad = windows[0, 0] > 0
        grads = jax.tree.map(jnp.ones_like, params)
        if what == "gradient":
            last = grads["embedding"].at[-1, -1].add(jnp.where(bad, jnp.inf, 0.0))
            grads["embedding"] = last
        return jnp.where(bad & (what == "loss"), jnp.nan, 1.0), grads

    t._loss_and_grads = loss_and_grads
    return t


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_step(run_config, what):
    t = simple_trainer(run_config, what)
    host = lambda state: jax.tree.map(np.array, (state.params, state.opt_state))
    state, _ = t.step(t.create(jax.random.key(0)), GOOD)
    before = host(state)
    state, metrics = t.step(state, BAD)
    assert np.isfinite(metrics["train_loss"]) == (what == "gradient") and int(state.step) == 2
    assert np.isfinite(metrics["grad_norm"]) == (what == "loss")
    jax.tree.map(np.testing.assert_array_equal, host(state), before)
    state, metrics = t.step(state, GOOD)
    # The second step that is applied, at half the warm-up. Adam moves what has the same gradient
    # twice by the learning rate, and the decay adds a tenth of the parameter.
    rate = float(metrics["learning_rate"])
    assert rate == pytest.approx(1e-2 / 2)
    was = before[0]["embedding"]
    moved = was - np.asarray(state.params["embedding"])
    np.testing.assert_allclose(moved, rate * (1 + 0.1 * was), rtol=1e-3)


def test_a_learning_rate_that_is_not_finite_is_not_applied(run_config, monkeypatch):
    monkeypatch.setattr("t6jax.training.step.learning_rate", lambda *_: lambda count: jnp.inf)
    t = simple_trainer(run_config, "")
    state = t.create(jax.random.key(0))
    before = np.array(state.params["embedding"])
    state, _ = t.step(t.step(state, GOOD)[0], GOOD)
    np.testing.assert_array_equal(state.params["embedding"], before)


@pytest.mark.parametrize("name", ["train_loss", "grad_norm"])
def test_each_number_that_is_not_finite_counts_alone(name):
    steps = NonFiniteSteps(2, 4)
    values = {"train_loss": 1.0, "grad_norm": 1.0}
    assert steps.event(1, values) is None
    for number, bad in enumerate((math.inf, math.nan), 1):
        assert steps.event(1, values | {name: bad})["in_a_row"] == number
    with pytest.raises(InputError, match="not finite in 2 steps in a row"):
        steps.stop_at_limit(3, None)
    assert steps.event(1, values) is None and steps.in_a_row == 0


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
