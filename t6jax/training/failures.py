"""What can fail during training: a loss or gradient that is not finite, and too little memory."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from t6jax.config import RunConfig
from t6jax.errors import InputError


class NonFiniteSteps:
    """Counts consecutive steps whose loss or gradient is not finite. The training step does not
    apply such steps.
    """

    def __init__(self, limit: int, batch_size: int):
        self._limit, self._batch_size = limit, batch_size
        self.in_a_row = 0

    def event(self, step: int, values: Mapping[str, float]) -> dict[str, Any] | None:
        """What to log of a step, or None if its loss and gradient norm are finite.

        `windows` in it are the first and last of the step's batch, counted in the order of the data
        from the start of the run.
        """
        if math.isfinite(values["train_loss"]) and math.isfinite(values["grad_norm"]):
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        return {
            "event": "not finite, not applied",
            "train_loss": str(values["train_loss"]),
            "grad_norm": str(values["grad_norm"]),
            "windows": [(step - 1) * self._batch_size, step * self._batch_size - 1],
            "in_a_row": self.in_a_row,
        }

    def stop_at_limit(self, step: int, saved: int | None) -> None:
        """Raises InputError after as many such steps in a row as are allowed.

        Args:
            step: the last of them.
            saved: step of the newest checkpoint; None if there is none.
        """
        if self.in_a_row >= self._limit:
            kept = (
                "nothing was saved yet"
                if saved is None
                else f"the checkpoint of step {saved} is kept"
            )
            raise InputError(
                f"the loss or the gradient was not finite in {self.in_a_row} steps in a row, up to "
                f"step {step}: lower "
                f"optimizer.learning_rate, or look at the data that metrics.jsonl names; {kept}"
            )


@contextlib.contextmanager
def out_of_memory(config: RunConfig) -> Iterator[None]:
    """Turns XLA's out-of-memory error, of compiling or running, into an InputError that says what
    to change.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        reason = (
            str(e).strip().splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")[:200]
        )
        raise InputError(f"a device ran out of memory ({reason}): {_remedies(config)}") from e


def _remedies(config: RunConfig) -> str:
    micro_batches, remat = config.accumulation_steps, config.model.remat
    rows = config.batch_size // micro_batches
    remedies = []
    if rows > 1:
        remedies.append(
            f"raise accumulation_steps={micro_batches}, so that a micro-batch has fewer than "
            f"{rows} rows"
        )
    if remat != "full":
        remedies.append(
            f"set model.remat={'dots or full' if remat == 'none' else 'full'}, now {remat}"
        )
    remedies.append(
        f"lower validation.batch_size={config.validation.batch_size} if it was validating"
    )
    remedies.append(
        f"split over more devices (mesh.fsdp={config.mesh.fsdp}, mesh.tensor={config.mesh.tensor})"
    )
    remedies.append(f"or lower batch_size={config.batch_size}")
    return ", ".join(remedies)
