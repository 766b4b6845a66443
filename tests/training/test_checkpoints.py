"""A checkpoint is what was written, of its step and its config, or it is not restored."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t6jax import InputError
from t6jax.checksums import NAME
from t6jax.config import RunConfig
from t6jax.runs import CHECKPOINTS, checkpoint_steps
from t6jax.training.checkpoints import Checkpoints
from t6jax.training.step import TrainState
from tests.conftest import TINY


class Position:
    """Stands for the batches: only their state is saved."""

    def __init__(self, batches: int = -1):
        self.batches = batches

    def get_state(self) -> dict:
        return {"batches": self.batches}

    def set_state(self, state: dict) -> None:
        self.batches = state["batches"]


CONFIG = RunConfig.from_dict({"model": TINY, "optimizer": {"warmup_steps": 2, "decay_steps": 9}})


def state(step: int, counted: int | None = None) -> TrainState:
    draw = np.random.default_rng(step)
    x = lambda: jnp.asarray(draw.standard_normal((7, 33)), jnp.float32)
    counted = step if counted is None else counted
    return TrainState(jnp.int32(counted), {"w": x()}, {"mu": x()}, jax.random.key(step))


def save(workdir, *steps: int, **options) -> None:
    with Checkpoints(workdir, CONFIG) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step, **options), Position(step))


def restore(workdir, config: RunConfig = CONFIG) -> tuple[int, TrainState, int]:
    position = Position()
    place = lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    with Checkpoints(workdir, config) as checkpoints:
        step, found = checkpoints.restore_newest(jax.tree.map(place, state(0)), position)
    return step, found, position.batches


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 3, 6)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def test_what_was_saved_is_restored_without_a_warning(saved, recwarn):
    step, found, batches = restore(saved)
    assert (step, batches) == (6, 6) and not recwarn.list
    np.testing.assert_array_equal(found.params["w"], state(6).params["w"])
    np.testing.assert_array_equal(found.opt_state["mu"], state(6).opt_state["mu"])
    files = {p.name for p in (saved / CHECKPOINTS).iterdir()}
    assert files == {"3", "6"}, "no temporary name is left"


def test_every_file_of_a_step_is_covered(workdir):
    folder = workdir / CHECKPOINTS / "6"
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != NAME]
    covered = json.loads((folder / NAME).read_text())["files"]
    assert {p.relative_to(folder).as_posix() for p in files} == set(covered)
    assert len(files) > 10


def files_of(folder, item: str) -> list:
    return sorted(p for p in (folder / item).rglob("*") if p.is_file() and p.stat().st_size > 500)


@pytest.mark.parametrize("item", ["parameters", "training", "batches", "", NAME])
def test_a_flipped_bit_has_the_step_set_aside_and_the_one_before_it_restored(workdir, item):
    folder = workdir / CHECKPOINTS / "6"
    path = {
        "batches": folder / "batches/metadata",
        "": folder / "_CHECKPOINT_METADATA",
        NAME: folder / NAME,
    }.get(item) or files_of(folder, item)[-1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.warns(
        UserWarning, match=rf"checkpoints/6 is damaged and is passed over: .*{path.name}"
    ):
        step, found, batches = restore(workdir)
    assert (step, batches) == (3, 3)
    np.testing.assert_array_equal(found.params["w"], state(3).params["w"])
    assert {p.name for p in (workdir / CHECKPOINTS).iterdir()} == {"3", "6.unreadable"}


def test_a_renamed_step_is_refused(workdir):
    folder = workdir / CHECKPOINTS
    (folder / "6").rename(folder / "7")
    with pytest.warns(UserWarning, match="checkpoints/7 is damaged .*: it was saved as step 6"):
        assert restore(workdir)[0] == 3


def test_folders_that_are_no_steps_are_left_alone(workdir):
    for name in ("007", "²", "-1", "6.unreadable", "x"):
        (workdir / CHECKPOINTS / name).mkdir()
    (workdir / CHECKPOINTS / "9").touch()
    assert checkpoint_steps(workdir) == [6, 3]


def test_a_damaged_step_that_cannot_be_set_aside_is_named(workdir, monkeypatch):
    def fail(*_):
        raise OSError(30, "Read-only file system")

    (workdir / CHECKPOINTS / "6" / NAME).write_text("")
    monkeypatch.setattr("pathlib.Path.rename", fail)
    with (
        pytest.warns(UserWarning, match="6 is damaged"),
        pytest.raises(InputError, match=r"6 is damaged and cannot be renamed \(Read-only"),
    ):
        restore(workdir)


def test_a_step_whose_parts_count_other_steps_is_refused_even_without_checksums(workdir):
    folder = workdir / CHECKPOINTS
    for path in folder.rglob(NAME):
        path.unlink()
    shutil.rmtree(folder / "6/batches")
    shutil.copytree(folder / "3/batches", folder / "6/batches")
    with pytest.warns(UserWarning, match="6 is damaged .*: the data's step in it is 3"):
        assert restore(workdir)[0] == 3
    shutil.rmtree(folder / "3/training")
    shutil.copytree(folder / "6.unreadable/training", folder / "3/training")
    with (
        pytest.warns(UserWarning, match="3 is damaged .*: the optimizer's step in it is 6"),
        pytest.raises(InputError, match="no checkpoint in .* can be read"),
    ):
        restore(workdir)


def test_a_checkpoint_without_checksums_is_restored_with_one_warning(workdir):
    (workdir / CHECKPOINTS / "6" / NAME).unlink()
    with pytest.warns(UserWarning) as warned:
        assert restore(workdir)[0] == 6
    (message,) = {str(w.message) for w in warned}
    assert f"checkpoints/6 has no {NAME}" in message and "read unchecked" in message


def test_a_checkpoint_of_another_config_is_refused_and_kept(workdir):
    model = dataclasses.replace(CONFIG.model, rope_base=20_000.0)
    with pytest.raises(InputError, match="model.rope_base was 10000.0, now 20000.0"):
        restore(workdir, dataclasses.replace(CONFIG, model=model))
    assert checkpoint_steps(workdir) == [6, 3]
    may_change = dataclasses.replace(CONFIG, steps=90)
    assert restore(workdir, may_change)[0] == 6


def test_a_kill_between_the_last_byte_and_the_final_name_leaves_what_the_next_start_deletes(
    workdir,
):
    folder = workdir / CHECKPOINTS
    (folder / "6").rename(folder / "6.orbax-checkpoint-tmp.committing")
    assert restore(workdir)[0] == 3
    assert {p.name for p in folder.iterdir()} == {"3"}


FULL = (
    'RESOURCE_EXHAUSTED: Error writing "w/0.0" in OCDBT database at local file "/a/": Failed '
    'writing: "/a/b": Failed to write 1138 bytes to file 4: No space left on device '
    "[os_error_code='28'] [tensorstore_spec='{}']"
)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError(FULL)])
def test_a_checkpoint_that_cannot_be_written_is_told_at_once(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(3, state(3), Position(3))
        checkpoints.wait()
        checkpoints.check()
        with monkeypatch.context() as patched:
            patched.setattr("t6jax.checksums.Checksums.write", fail)
            checkpoints.save(6, state(6), Position(6))
            with pytest.raises(
                InputError,
                match=r"the checkpoint of step 6 cannot be written into .*checkpoints \(No space "
                r"left on device\); the one of step 3 is kept: make room",
            ):
                while True:  # as the loop does after each step
                    checkpoints.check()
        # and is not told again
    assert checkpoint_steps(tmp_path) == [3]
    assert restore(tmp_path)[0] == 3


def test_an_error_that_is_not_the_disks_is_raised_as_it_is(tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("t6jax.checksums.Checksums.write", fail)
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(3, state(3), Position(3))
