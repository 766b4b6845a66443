"""Saving and resuming a training run with Orbax."""

import pathlib
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp

from t6jax.data.batches import Batches
from t6jax.parallel import processes
from t6jax.runs import BATCHES, CHECKPOINTS, PARAMETERS, TRAINING, checkpoint_steps, restore_newest
from t6jax.training.step import TrainState


class Checkpoints:
    """The checkpoints of a run: parameters, optimizer state, step, random state, and the position
    in the data.

    They are written asynchronously, under a temporary name until they are complete. The newest
    `keep` are kept.
    """

    def __init__(self, workdir: pathlib.Path, keep: int):
        self._workdir = workdir
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager((workdir / CHECKPOINTS).absolute(), options=options)

    def save(self, step: int, state: TrainState, batches: Batches) -> None:
        """Saves the state after `step` steps; returns before it is written."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    PARAMETERS: ocp.args.StandardSave(state.params),
                    TRAINING: ocp.args.StandardSave(_without_params(state)),
                    BATCHES: ocp.args.JsonSave(batches.get_state()),
                }
            ),
        )

    def restore_newest(
        self, abstract: TrainState, batches: Batches
    ) -> tuple[int, TrainState] | None:
        """Restores the newest checkpoint that can be read.

        Newer ones that cannot be read are named in a warning and renamed to
        checkpoints/<step>.unreadable.

        Args:
            abstract: shapes, dtypes and shardings of the state.
            batches: is set to the position that the checkpoint holds.

        Returns:
            (step, state), or None if there is no checkpoint.

        Raises:
            InputError: there are checkpoints, and none can be read.
        """
        steps = checkpoint_steps(self._workdir)
        if not steps:
            return None

        def restore(step: int) -> TrainState:
            args = {
                PARAMETERS: ocp.args.StandardRestore(abstract.params),
                TRAINING: ocp.args.StandardRestore(_without_params(abstract)),
                BATCHES: ocp.args.JsonRestore(),
            }
            restored = processes.all_succeed(
                lambda: self._manager.restore(step, args=ocp.args.Composite(**args))
            )
            batches.set_state(restored[BATCHES])
            return TrainState(params=restored[PARAMETERS], **restored[TRAINING])

        found, state = restore_newest(self._workdir, steps, restore)
        folder = self._workdir / CHECKPOINTS

        def set_aside() -> None:
            for step in steps[: steps.index(found)]:
                names = (
                    folder / f"{step}.unreadable{n}"
                    for n in ("", *(f".{i}" for i in range(2, 1000)))
                )
                (folder / str(step)).rename(next(name for name in names if not name.exists()))

        processes.on_first_process("set aside", set_aside)
        self._manager.reload()
        return found, state

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits until all that was saved is written, whatever ended the run."""
        self._manager.wait_until_finished()
        self._manager.close()


def _without_params(state: TrainState) -> Mapping[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "key": state.key}
