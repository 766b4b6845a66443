"""A trace of some steps of a run, for XProf or TensorBoard."""

import pathlib

import jax

PROFILE = "profile"


class Profile:
    """Traces some steps into the folder `profile` of a run's directory, on the first process."""

    def __init__(self, workdir: pathlib.Path, steps: range):
        self._folder, self._steps = (
            workdir / PROFILE,
            steps if jax.process_index() == 0 else range(0),
        )
        self._running = False

    def before(self, step: int) -> None:
        """Starts the trace if this step is the first to trace."""
        if step == self._steps.start and self._steps:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, result: object) -> bool:
        """Ends the trace after its last step, once the step's result is there.

        Returns:
            Whether the trace ended.
        """
        if not self._running or step < self._steps[-1]:
            return False
        jax.block_until_ready(result)
        self.close()
        return True

    def close(self) -> None:
        """Ends the trace if it is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()

    @property
    def folder(self) -> pathlib.Path:
        """Where the trace is written."""
        return self._folder
