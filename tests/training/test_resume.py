"""A run goes on where it was, bit for bit, whatever ended it; damaged checkpoints are passed over
by name.
"""

import json
import math
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

from t6jax import InputError
from t6jax.config import RunConfig
from t6jax.parallel.processes import RESUME
from t6jax.runs import CHECKPOINTS, checkpoint_steps
from tests.conftest import command, process_options

STEPS = 240
DEAD_AFTER = 8
pytestmark = pytest.mark.slow


def start(workdir: pathlib.Path, *flags: str, **environment: str) -> subprocess.Popen:
    run = command("train.py", "--config=tests/configs/tiny.py", f"--workdir={workdir}", *flags)
    options = process_options()
    options["env"] |= environment
    return subprocess.Popen(run, **options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def start_together(
    workdir: pathlib.Path, count: int, *flags: str, slurm: bool = False
) -> list[subprocess.Popen]:
    """Several processes of one run, on this machine: by train.py's flags, or as srun starts
    them.
    """
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = str(s.getsockname()[1])
    flags = (*flags, f"--dead_after={DEAD_AFTER}")
    if not slurm:
        named = (f"--coordinator=localhost:{port}", f"--num_processes={count}")
        return [start(workdir, *named, f"--process_id={i}", *flags) for i in range(count)]
    job = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "JAX_COORDINATOR_PORT": port,
    }
    task = lambda i: {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
    return [start(workdir, *flags, **job, **task(i)) for i in range(count)]


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def logged(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: pathlib.Path) -> dict[int, float]:
    lines = [line for line in logged(workdir) if "train_loss" in line]
    assert len({line["step"] for line in lines}) == len(lines), "a step was logged twice"
    return {line["step"]: line["train_loss"] for line in lines}


def wait_for_step(workdir: pathlib.Path, process: subprocess.Popen, step: int) -> None:
    path = workdir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and path.read_text().count('"train_loss"') >= step:
            return
        time.sleep(0.002)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("unbroken")
    finish(
        start(workdir, JAX_ENABLE_COMPILATION_CACHE="false")
    )  # compiled apart from those it is held against
    assert sorted(losses(workdir)) == list(range(1, STEPS + 1))
    return workdir


def copy(unbroken: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(unbroken, tmp_path / "run"))


def test_killed_at_random_points_the_losses_are_an_unbroken_runs_bit_for_bit(unbroken, tmp_path):
    seed = time.time_ns()
    print(f"seed {seed}")
    draw = random.Random(seed)
    # once before or while it starts, then three times at growing random steps, at a random moment
    # of the step or the save
    process = start(tmp_path)
    time.sleep(draw.uniform(0, 5))
    process.kill()
    process.wait()
    for step in sorted(draw.sample(range(1, STEPS), 3)):
        process = start(tmp_path)
        wait_for_step(tmp_path, process, step)
        time.sleep(draw.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(start(tmp_path))
    assert losses(tmp_path) == losses(unbroken)
    validation = lambda workdir: [line for line in logged(workdir) if "val_loss" in line]
    assert validation(tmp_path) == validation(unbroken)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive)]
)
def test_sigterm_and_sigint_save_and_exit_and_the_run_goes_on(unbroken, tmp_path, number):
    process = start(tmp_path)
    wait_for_step(tmp_path, process, 33)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    saved = checkpoint_steps(tmp_path)[0]
    assert f"stopped by {number.name} and saved at step {saved}" in output
    assert max(losses(tmp_path)) == saved >= 33, (
        "saved where it stopped, not at the last regular checkpoint"
    )
    assert f"resumed from step {saved}" in finish(start(tmp_path))
    assert losses(tmp_path) == losses(unbroken)


def test_a_signal_during_validation_saves_that_step(tmp_path, monkeypatch, run_config):
    import os

    from t6jax.training import loop

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return 0.0, 1

    run_config["validation"]["every_steps"], run_config["checkpoint"]["every_steps"] = 3, 100
    monkeypatch.setattr(loop, "validation_loss", interrupted)
    assert loop.train(RunConfig.from_dict(run_config), tmp_path) == signal.SIGTERM
    assert checkpoint_steps(tmp_path) == [3]


def test_two_runs_in_one_directory_do_not_meet(tmp_path):
    endless = "--config.steps=1000000"  # the first still runs, however long the second takes
    first = start(tmp_path, endless)
    wait_for_step(tmp_path, first, 1)
    second = start(tmp_path, endless)
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 1
    assert f"another process is training in {tmp_path}" in output
    first.kill()


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_restored(unbroken, tmp_path):
    workdir = copy(unbroken, tmp_path)
    newest, before = checkpoint_steps(workdir)[:2]
    folder = workdir / CHECKPOINTS / str(newest)
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 4096:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    output = finish(start(workdir))
    assert f"{folder} is damaged and is passed over" in output
    assert f"resumed from step {before}" in output
    assert losses(workdir) == losses(unbroken)
    assert (workdir / CHECKPOINTS / f"{newest}.unreadable").is_dir(), "nothing is deleted"
    assert checkpoint_steps(workdir)[0] == newest, "trained and saved again"


def test_where_no_checkpoint_can_be_read_training_does_not_start_over(unbroken, tmp_path):
    workdir = copy(unbroken, tmp_path)
    for path in (workdir / CHECKPOINTS).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    process = start(workdir)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and output.strip().endswith("can be read"), output


def test_a_half_written_checkpoint_is_never_picked_up(unbroken, tmp_path):
    workdir = copy(unbroken, tmp_path)
    folder = workdir / CHECKPOINTS
    newest, before = checkpoint_steps(workdir)[:2]
    (folder / str(newest)).rename(folder / f"{newest}.orbax-checkpoint-tmp")
    assert f"resumed from step {before}" in finish(start(workdir))
    assert losses(workdir) == losses(unbroken)


def test_old_checkpoints_are_pruned(unbroken):
    assert checkpoint_steps(unbroken) == [240, 230, 220]


def test_a_finished_run_has_nothing_left_to_train(unbroken, tmp_path):
    workdir = copy(unbroken, tmp_path)
    assert "nothing left to train: 240 of 240 steps are done" in finish(start(workdir))
    assert losses(workdir) == losses(unbroken)


def test_another_config_is_refused_by_its_keys_and_more_steps_are_not(unbroken, tmp_path):
    workdir = copy(unbroken, tmp_path)
    process = start(workdir, "--config.model.d_model=24", "--config.seed=1")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "model.d_model was 16, now 24; seed was 0, now 1" in output
    finish(start(workdir, "--config.steps=250", "--config.log.every_steps=5"))
    assert set(losses(workdir)) == {*range(1, 241), 245, 250}


def test_load_takes_a_run_or_a_step_and_passes_over_what_cannot_be_read(unbroken, tmp_path):
    from t6jax import load

    workdir = copy(unbroken, tmp_path)
    model, config = load(workdir)
    assert config.d_model == 16
    step, _ = load(workdir / CHECKPOINTS / "240")
    assert (step.embedding[...] == model.embedding[...]).all()
    older, _ = load(workdir / CHECKPOINTS / "220")
    assert (older.embedding[...] != model.embedding[...]).any()
    for path in (workdir / CHECKPOINTS / "240").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.warns(UserWarning, match="240 is damaged and is passed over"):
        load(workdir)
    with (
        pytest.warns(UserWarning),
        pytest.raises(InputError, match="no checkpoint in .* can be read"),
    ):
        load(workdir / CHECKPOINTS / "240")


def assert_says_that_another_has_gone(output: str) -> None:
    said = output.strip().splitlines()[-1]
    assert (
        said.startswith("error: ")
        # XLA ends this process, or a collective fails before that
        and (
            "when one process of a run ends" in said or "another process of this run ended" in said
        )
        and said.endswith(RESUME)
    ), output


@pytest.mark.parametrize("stopped", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_where_a_process_gives_no_sign_of_life_the_other_ends_with_a_sentence(tmp_path, stopped):
    two = start_together(tmp_path, 2, "--config.mesh.data=2")
    wait_for_step(tmp_path, two[0], 3)
    two[stopped].send_signal(signal.SIGSTOP)
    try:
        output, _ = two[1 - stopped].communicate(timeout=DEAD_AFTER + 20)
    finally:
        two[stopped].kill()
    assert_says_that_another_has_gone(output)


@pytest.mark.parametrize(
    "axes",
    [
        {"data": 1, "fsdp": 2},
        pytest.param({"data": 1, "fsdp": 2, "tensor": 2}, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_several_processes_then_others_then_one_give_one_processs_losses(unbroken, tmp_path, axes):
    """Two, stopped by SIGTERM to one of them; then as many as the mesh has devices, stopped by the
    death of one; then one.
    """
    two = start_together(tmp_path, 2, "--config.mesh.data=2", slurm=True)
    wait_for_step(tmp_path, two[0], 13)
    two[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120)[0] for process in two]
    assert [process.returncode for process in two] == [128 + signal.SIGTERM] * 2, outputs
    assert all(
        output.startswith("joining 2 processes of Slurm") and RESUME not in output
        for output in outputs
    )
    saved = checkpoint_steps(tmp_path)[0]
    assert saved >= 13 and f"stopped by SIGTERM and saved at step {saved}" in outputs[0]

    mesh = [f"--config.mesh.{axis}={size}" for axis, size in axes.items()]
    others = start_together(tmp_path, math.prod(axes.values()), *mesh)
    wait_for_step(tmp_path, others[0], 25)
    others[-1].kill()
    killed = time.monotonic()
    outputs = [process.communicate(timeout=120)[0] for process in others]
    # the heartbeat's time, and what the machine takes to end processes that hold arrays
    assert time.monotonic() - killed < DEAD_AFTER + 20
    assert all(process.returncode for process in others)
    assert f"resumed from step {saved}" in outputs[0]
    for output in outputs[:-1]:
        assert_says_that_another_has_gone(output)

    assert "resumed from step " in finish(start(tmp_path, "--config.steps=40"))
    got, want = losses(tmp_path), losses(unbroken)
    # sums over devices are taken in another order: see test_layouts
    np.testing.assert_allclose(
        [got[s] for s in range(1, 41)], [want[s] for s in range(1, 41)], rtol=1e-5
    )
