"""Saving and resuming a training run with Orbax."""

import asyncio
import contextlib
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orbax.checkpoint as ocp

from t6jax.checksums import ChecksumError, Hasher
from t6jax.config import RunConfig, differences
from t6jax.config.urls import without_secrets
from t6jax.data.batches import Batches
from t6jax.errors import InputError
from t6jax.parallel import processes
from t6jax.runs import (
    BATCHES,
    CHECKPOINTS,
    PARAMETERS,
    TRAINING,
    checkpoint_steps,
    read_checksums,
    restore_newest,
)
from t6jax.training.step import TrainState


class Checkpoints:
    """The checkpoints of a run: parameters, optimizer state, step, random state, and the position
    in the data.

    They are written asynchronously, under a temporary name until they are complete. Each has a
    checksum of every byte, and the run's config. The newest `keep` are kept.
    """

    def __init__(self, workdir: pathlib.Path, config: RunConfig):
        self._workdir, self._config = workdir, config
        self._saving = self._saved = None  # steps: that is being written, that was written last
        self._path_class = _checksummed(without_secrets(config.to_dict()))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.checkpoint.keep,
            cleanup_tmp_directories=True,
            temporary_path_class=self._path_class,
        )
        self._manager = ocp.CheckpointManager((workdir / CHECKPOINTS).absolute(), options=options)

    def save(self, step: int, state: TrainState, batches: Batches) -> None:
        """Saves the state after `step` steps; returns before it is written."""
        self.wait()
        self._saving = step
        items = {
            PARAMETERS: ocp.args.StandardSave(state.params),
            TRAINING: ocp.args.StandardSave(_without_params(state)),
            BATCHES: ocp.args.JsonSave(batches.get_state()),
        }
        with self._written():
            self._manager.save(step, args=ocp.args.Composite(**items))

    def check(self) -> None:
        """Raises InputError once it is known that the step being saved cannot be written."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the step being saved is written. Raises InputError if it cannot be."""
        if self._saving is None:
            return
        with self._written():
            self._manager.wait_until_finished()
        self._saved, self._saving = self._saving, None

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Turns what Orbax and TensorStore raise where a file cannot be written into InputError."""
        try:
            yield
        except Exception as e:  # TensorStore raises ValueError, with the system's words in it
            reason = next(filter(None, map(_system_error, (e, e.__cause__, e.__context__))), None)
            if reason is None:
                raise
            step, self._saving = self._saving, None
            kept = f"the one of step {self._saved} is kept" if self._saved else "there is none yet"
            raise InputError(
                f"the checkpoint of step {step} cannot be written into "
                f"{self._workdir / CHECKPOINTS} ({reason}); {kept}: make room there, and the same "
                "command goes on"
            ) from e

    def restore_newest(
        self, abstract: TrainState, batches: Batches
    ) -> tuple[int, TrainState] | None:
        """Restores the newest checkpoint that is whole.

        Newer ones that cannot be read, or are not what was written, are named in a warning and
        renamed to checkpoints/<step>.unreadable.

        Args:
            abstract: shapes, dtypes and shardings of the state.
            batches: is set to the position that the checkpoint holds.

        Returns:
            (step, state), or None if there is no checkpoint.

        Raises:
            InputError: there are checkpoints, and none can be read; or the newest is of another
                config.
        """
        steps = checkpoint_steps(self._workdir)
        if not steps:
            return None

        def restore(step: int) -> TrainState:
            processes.all_succeed(lambda: self._verify(step))
            args = {
                PARAMETERS: ocp.args.StandardRestore(abstract.params),
                TRAINING: ocp.args.StandardRestore(_without_params(abstract)),
                BATCHES: ocp.args.JsonRestore(),
            }
            restored = processes.all_succeed(
                lambda: self._manager.restore(step, args=ocp.args.Composite(**args))
            )
            state = TrainState(params=restored[PARAMETERS], **restored[TRAINING])
            counted = {
                "the optimizer's": int(state.step),
                "the data's": restored[BATCHES]["batches"],
            }
            for whose, number in counted.items():
                if number != step:
                    raise ChecksumError(f"{whose} step in it is {number!r}")
            batches.set_state(restored[BATCHES])
            return state

        found, state = restore_newest(self._workdir, steps, restore)
        folder = self._workdir / CHECKPOINTS

        def set_aside() -> None:
            for step in steps[: steps.index(found)]:
                names = (
                    folder / f"{step}.unreadable{n}"
                    for n in ("", *(f".{i}" for i in range(2, 1000)))
                )
                try:
                    (folder / str(step)).rename(next(name for name in names if not name.exists()))
                except OSError as e:
                    raise InputError(
                        f"{folder / str(step)} is damaged and cannot be renamed ({e.strerror}): "
                        "move it away"
                    ) from e

        processes.on_first_process("set aside", set_aside)
        self._manager.reload()
        self._saved = found
        return found, state

    def _verify(self, step: int) -> None:
        """Raises ChecksumError if a step is not what was written; InputError if it is of another
        config.
        """
        folder = self._workdir / CHECKPOINTS / str(step)
        sums = read_checksums(folder)
        if sums is None:
            return
        sums.verify(folder, share=processes.own_share())
        if changed := differences(sums.about["config"], self._config):
            listed = "; ".join(
                f"{key} was {old!r}, now {new!r}" for key, (old, new) in changed.items()
            )
            raise InputError(
                f"{folder} was saved with another config than this run's ({listed}): give the old "
                "values, or another --workdir"
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits until all that was saved is written, whatever ended the run."""
        try:
            self.wait()
        finally:
            self._path_class.close()
            with contextlib.suppress(Exception):  # what could not be written was told
                self._manager.close()


def _system_error(error: BaseException | None) -> str | None:
    """What the operating system said, if it is the reason of an error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    found = re.search(r": ([^:\[\]]+) \[os_error_code='\d+'", str(error or ""))  # TensorStore's
    return found and found[1]


def _without_params(state: TrainState) -> Mapping[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "key": state.key}


# after Orbax's own suffix: what a kill leaves under such a name is deleted at the next start
COMMITTING = ".committing"


class _ChecksummedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The temporary name of a step, which gets its final one together with its checksums.

    Orbax makes one for each of the step's items too; those are left as they are. Only the first
    process calls these methods, before anything is written and after all processes have written.
    """

    config: Mapping[str, Any]
    _hasher: Hasher | None = None  # of the step that is being written, one at a time

    @classmethod
    def close(cls) -> None:
        if cls._hasher:
            cls._hasher.close()
        cls._hasher = None

    def _is_step(self) -> bool:
        return self._final_path.parent.name == CHECKPOINTS

    async def create(self) -> Any:
        created = await super().create()
        if self._is_step():
            self.close()
            type(self)._hasher = Hasher(pathlib.Path(self.get()))
        return created

    async def finalize(self) -> None:
        hasher = self._hasher
        if not self._is_step() or hasher is None:
            await super().finalize()
            return
        # Orbax's own last files are covered too: they are written before it renames the folder,
        # so it is renamed twice
        final = self._final_path
        self._final_path = final.with_name(self.get().name + COMMITTING)
        await super().finalize()
        whole = pathlib.Path(self._final_path)
        about = {"step": int(final.name), "config": self.config}

        def commit() -> None:
            hasher.finish(whole, about).write(whole)
            whole.rename(final)

        await asyncio.to_thread(commit)
        self._final_path = final
        type(self)._hasher = None


def _checksummed(config: Mapping[str, Any]) -> type[_ChecksummedPath]:
    """The class of temporary paths for the checkpoints of one config; Orbax makes the instances."""
    return type("ChecksummedPath", (_ChecksummedPath,), {"config": config})
