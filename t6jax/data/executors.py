"""Who tokenizes the units: this process, or datatrove's executors over local processes, Slurm or Ray."""

import pathlib
import threading
import time
from collections.abc import Mapping
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
        """Whether the part is there; raises what went wrong on the way to it."""
        ...


class InProcess:
    """Makes each part when it is asked for."""

    def start(self, work: pathlib.Path, first: int, count: int) -> None:
        pass

    def poll(self, work: pathlib.Path, index: int) -> bool:
        tokenize_unit(work, index)
        return True


class Datatrove:
    """One of datatrove's executors, which runs a task for each unit."""

    def __init__(self, executor: str, workers: int, options: Mapping[str, Any]):
        self._executor, self._workers, self._options = executor, workers, options
        self._error: BaseException | None = None
        self._ended = False
        self._processes: set[int] = set()
        self._lost_at: float | None = None

    def start(self, work: pathlib.Path, first: int, count: int) -> None:
        run = self._make(work.absolute(), first, count).run

        def target():
            try:
                run()
                # Slurm's has only handed the tasks in
                self._ended = self._executor != "slurm"
            except BaseException as e:
                self._error = e

        threading.Thread(target=target, daemon=True).start()

    def poll(self, work: pathlib.Path, index: int) -> bool:
        error, ended = self._error, self._ended
        if part_path(work, index).exists():
            return True
        if isinstance(error, InputError):
            raise error
        if error is not None or ended:
            raise InputError(f"a task of the {self._executor} executor failed: see {work / 'datatrove' / 'logs'}") from error
        if self._lost_a_process():
            raise InputError("a worker process was killed (was memory short?): the same command goes on, with fewer --workers")
        return False

    def _make(self, work: pathlib.Path, first: int, count: int) -> Any:
        from t6jax.data.tasks import TokenizeUnits

        common = {"pipeline": [TokenizeUnits(work)], "tasks": count, "logging_dir": str(work / "datatrove")}
        if self._executor == "slurm":
            from datatrove.executor import SlurmPipelineExecutor

            return SlurmPipelineExecutor(**common, workers=self._workers, job_name="t6jax-prepare", **self._options)
        if self._executor == "ray":
            try:
                from datatrove.executor import RayPipelineExecutor

                return RayPipelineExecutor(**common, workers=self._workers, **self._options)
            except ImportError as e:
                raise InputError(f"--executor=ray needs Ray: pip install 'datatrove[ray]' ({e})") from e
        from datatrove.executor import LocalPipelineExecutor

        # parts that are used up are deleted, so it is for us to say which tasks are left
        left = {"local_rank_offset": first, "local_tasks": count - first, "skip_completed": False}
        return LocalPipelineExecutor(**common, **left, workers=self._workers)

    def _lost_a_process(self) -> bool:
        """datatrove's pool waits for ever for the task of a process that was killed, as it is where memory runs out."""
        if self._executor != "local":
            return False
        import multiprocess

        processes = {p.pid for p in multiprocess.active_children() if "PoolWorker" in p.name}
        if self._processes - processes and self._lost_at is None:
            self._lost_at = time.monotonic()
        self._processes = processes
        # a pool that ends, or fails, ends its processes first, and then says so
        return self._lost_at is not None and time.monotonic() - self._lost_at > 10


def make_producer(executor: str, workers: int, options: Mapping[str, Any]) -> Producer:
    """executor: one of EXECUTORS. options: of datatrove's executor, such as Slurm's time and partition."""
    if executor not in EXECUTORS:
        raise InputError(f"--executor must be one of {', '.join(EXECUTORS)}; got {executor!r}")
    if workers < 1:
        raise InputError(f"--workers must be at least 1; got {workers}")
    if executor == "local" and workers == 1:
        return InProcess()
    return Datatrove(executor, workers, options)
