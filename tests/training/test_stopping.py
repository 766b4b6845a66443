"""Whatever asks a run to stop, or takes away what it writes to, it saves first and says why."""

import errno
import os
import signal

import numpy as np
import pytest

from t6jax import InputError
from t6jax.config import RunConfig
from t6jax.parallel.mesh import batch_sharding, make_mesh
from t6jax.runs import checkpoint_steps
from t6jax.training import loop
from t6jax.training.console import Console
from t6jax.training.metrics import MetricsLog
from t6jax.training.profile import Profile
from t6jax.training.signals import caught_signals
from t6jax.training.tensorboard import TensorBoard


def full(*_) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class Steps:
    """Stands for a Trainer: its step counts, and calls `at[step]`."""

    def __init__(self, mesh, at: dict):
        self.mesh, self.batch_sharding, self.step, self._at = mesh, batch_sharding(mesh), self, at

    def lower(self, *_):
        return self

    def compile(self):
        return self

    def __call__(self, state: int, batch):
        self._at.get(state + 1, lambda: None)()
        return state + 1, dict.fromkeys(
            ("train_loss", "grad_norm", "learning_rate"), np.float32(1.0)
        )


class Batches:
    def start_prefetch(self) -> None:
        pass

    def __next__(self) -> np.ndarray:
        return np.zeros((4, 17), np.int32)


class Saved(list):
    """Stands for the checkpoints."""

    def save(self, step: int, *_) -> None:
        self.append(step)

    def check(self) -> None:
        pass


def run(run_config: dict, workdir, at: dict, log: MetricsLog, console: Console) -> tuple:
    run_config["validation"]["every_steps"] = 100
    config = RunConfig.from_dict(run_config)
    steps = Steps(make_mesh(run_config["mesh"]), at)
    saved, profile = Saved(), Profile(workdir, range(0))
    made = loop._Loop(config, steps, saved, log, profile, console)
    state, stopped = made.run(0, 0, Batches(), lambda *_: (1.0, 64))
    return state, stopped, saved


@pytest.fixture
def log(tmp_path):
    with MetricsLog(tmp_path, 0, tensorboard=True) as made:
        yield made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_has_the_step_saved(run_config, tmp_path, log, number):
    before = signal.getsignal(number)
    at = {3: lambda: os.kill(os.getpid(), number)}
    assert run(run_config, tmp_path, at, log, Console()) == (3, number, [3])
    assert signal.getsignal(number) == before


def test_a_hang_up_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with caught_signals() as caught:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not caught and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("error", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_a_closed_output_has_the_step_saved(run_config, tmp_path, log, monkeypatch, error):
    """What `train.py | head` does."""

    def closed(*_, **__):
        raise OSError(error, os.strerror(error))

    console = Console()
    run_config["checkpoint"]["every_steps"] = 100
    at = {3: lambda: monkeypatch.setattr("builtins.print", closed)}
    monkeypatch.setattr("os.dup2", lambda *_: None)  # the tests' own output
    state, stopped, saved = run(run_config, tmp_path, at, log, console)
    assert stopped == signal.SIGPIPE and console.closed == os.strerror(error)
    assert saved == [state] and state <= 4 + loop.LAG


@pytest.mark.parametrize("what", ["metrics.jsonl", "tensorboard", "flush"])
def test_a_full_disk_under_a_log_has_the_step_saved(run_config, tmp_path, log, monkeypatch, what):
    def fill() -> None:
        if what == "metrics.jsonl":

            class Full:
                write = staticmethod(full)
                close = staticmethod(log._file.close)

            monkeypatch.setattr(log, "_file", Full())
        else:
            monkeypatch.setattr(TensorBoard, what if what == "flush" else "write", full)

    if what != "flush":  # which is called where a step is saved
        run_config["checkpoint"]["every_steps"] = 100
    state, stopped, saved = run(run_config, tmp_path, {3: fill}, log, Console())
    name = "tensorboard" if what == "flush" else what
    assert log.failed == f"{tmp_path / name} cannot be written: No space left on device"
    assert stopped == signal.SIGTERM and state <= 4 + loop.LAG
    assert saved == ([4, state] if what == "flush" else [state])


def test_a_part_of_a_line_is_a_full_disk(tmp_path, log, monkeypatch):
    class Short:
        close = staticmethod(log._file.close)

        def write(self, line: bytes) -> int:
            return len(line) - 1

    monkeypatch.setattr(log, "_file", Short())
    log.write(1, {"x": 1.0})
    assert "No space left" in log.failed


def test_a_full_disk_ends_the_run_in_a_sentence_after_saving(run_config, tmp_path, monkeypatch):
    run_config["log"]["tensorboard"] = True
    write = TensorBoard.write
    monkeypatch.setattr(
        TensorBoard, "write", lambda self, step, v: full() if step >= 3 else write(self, step, v)
    )
    with pytest.raises(
        InputError, match=r"tensorboard cannot be written: No space .*; saved at step \d; the same"
    ) as raised:
        loop.train(RunConfig.from_dict(run_config), tmp_path)
    step = checkpoint_steps(tmp_path)[0]
    assert f"saved at step {step};" in str(raised.value) and step <= 3 + loop.LAG
    # and a directory that cannot be written, before anything is trained
    monkeypatch.setattr(loop, "write_config", full)
    with pytest.raises(
        InputError, match=rf"{tmp_path} cannot be written \(No space left on device\)"
    ):
        loop.train(RunConfig.from_dict(run_config), tmp_path)
