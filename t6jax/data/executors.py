"""Who tokenizes the units: this process, or datatrove's executors over local processes, Slurm or Ray."""

import pathlib
import threading
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor
from typing import Any, Protocol

from t6jax.data.parts import part_path, tokenize_unit
from t6jax.errors import InputError

EXECUTORS = ("local", "slurm", "ray")


class Producer(Protocol):
    """Makes parts, about in their order."""

    def start(self, work: pathlib.Path, first: int, count: int) -> None:
        """Begins with part `first` of `count`."""
        ...

    def poll(self, work: pathlib.Path, index: int) -> bool:
        """Whether the part is there; those before it are not needed any more. Raises what went wrong on the way to it."""
        ...

    def stop(self) -> None:
        """Ends, or waits for the end of, what is still at work."""
        ...


class InProcess:
    """Makes each part when it is asked for."""

    def start(self, work: pathlib.Path, first: int, count: int) -> None:
        pass

    def poll(self, work: pathlib.Path, index: int) -> bool:
        tokenize_unit(work, index)
        return True

    def stop(self) -> None:
        pass


class Datatrove:
    """One of datatrove's executors, which runs a task for each unit."""

    def __init__(self, executor: str, workers: int, options: Mapping[str, Any]):
        self._executor, self._workers, self._options = executor, workers, options
        self._error: BaseException | None = None
        self._ended = False
        self._stopped = threading.Event()
        self._wanted = 0
        self._thread: threading.Thread | None = None

    def start(self, work: pathlib.Path, first: int, count: int) -> None:
        self._wanted = first
        run = self._make(work.absolute(), first, count).run

        def target():
            try:
                run()
                # Slurm's has only handed the tasks in
                self._ended = self._executor != "slurm"
            except BaseException as e:
                self._error = e

        self._thread = threading.Thread(target=target, daemon=True)
        self._thread.start()

    def poll(self, work: pathlib.Path, index: int) -> bool:
        self._wanted = index
        error, ended = self._error, self._ended
        if part_path(work, index).exists():
            return True
        if isinstance(error, InputError):
            raise error
        if isinstance(error, BrokenExecutor):
            raise InputError(
                "a worker process was killed (was memory short?): the same command goes on, perhaps with fewer --workers"
            ) from error
        if error is not None or ended:
            what = f": {type(error).__name__}: {error}" if error else ""
            raise InputError(f"a task of the {self._executor} executor failed{what}; see {work / 'datatrove'}") from error
        return False

    def stop(self) -> None:
        self._stopped.set()
        if self._thread and self._executor == "local":
            self._thread.join()

    def _make(self, work: pathlib.Path, first: int, count: int) -> Any:
        from t6jax.data.tasks import LocalExecutor, TokenizeUnits

        if self._executor == "local":
            # so far ahead of what is wanted that nobody waits, and not further, for the sake of the disk
            may_begin = lambda rank: rank < self._wanted + 4 * self._workers + 4
            return LocalExecutor(work, first, count, self._workers, may_begin, self._stopped)
        common = {
            "pipeline": [TokenizeUnits(work)],
            "tasks": count,
            "workers": self._workers,
            "logging_dir": str(work / "datatrove"),
        }
        if self._executor == "slurm":
            from datatrove.executor import SlurmPipelineExecutor

            logs = str(work / "datatrove" / "slurm")
            return SlurmPipelineExecutor(**common, job_name="t6jax-prepare", slurm_logs_folder=logs, **self._options)
        try:
            from datatrove.executor import RayPipelineExecutor

            return RayPipelineExecutor(**common, **self._options)
        except ImportError as e:
            raise InputError(f"--executor=ray needs Ray: pip install 'datatrove[ray]' ({e})") from e


def make_producer(executor: str, workers: int, options: Mapping[str, Any]) -> Producer:
    """executor: one of EXECUTORS. options: of datatrove's executor, such as Slurm's time and partition."""
    if executor not in EXECUTORS:
        raise InputError(f"--executor must be one of {', '.join(EXECUTORS)}; got {executor!r}")
    if workers < 1:
        raise InputError(f"--workers must be at least 1; got {workers}")
    if executor == "local" and workers == 1:
        return InProcess()
    return Datatrove(executor, workers, options)
