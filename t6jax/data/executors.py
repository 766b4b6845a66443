"""Who tokenizes the units: this process, or datatrove's executors over local processes, Slurm or Ray."""

import pathlib
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor
from typing import Any, Protocol

import t6jax
from t6jax.data.parts import part_path, tokenize_unit
from t6jax.errors import InputError

EXECUTORS = ("local", "slurm", "ray")
SLURM_ASKED_SECONDS = 60


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
        self._asked, self._gone = time.monotonic(), False

    def start(self, work: pathlib.Path, first: int, count: int) -> None:
        self._wanted = first
        self._running = self._make(work.absolute(), first, count)

        def target():
            try:
                self._running.run()
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
        if error is not None or ended or self._left_slurm():
            what = f": {type(error).__name__}: {error}" if error else ""
            raise InputError(f"a task of the {self._executor} executor failed{what}; see {work / 'datatrove'}") from error
        return False

    def stop(self) -> None:
        self._stopped.set()
        if self._thread and self._executor != "slurm":
            self._thread.join(None if self._executor == "local" else 60)

    def _left_slurm(self) -> bool:
        """Whether Slurm has nothing left to do: asked once a minute, and believed the second time."""
        if self._executor != "slurm" or self._thread.is_alive() or time.monotonic() - self._asked < SLURM_ASKED_SECONDS:
            return False
        self._asked = time.monotonic()
        queue = subprocess.run(["squeue", "-h", "-j", str(self._running.job_id)], capture_output=True, text=True, check=False)
        gone, was_gone = not queue.stdout.strip(), self._gone
        self._gone = gone
        return gone and was_gone

    def _make(self, work: pathlib.Path, first: int, count: int) -> Any:
        from t6jax.data.tasks import LocalExecutor, SlurmExecutor, TokenizeUnits

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
            logs = str(work / "datatrove" / "slurm")
            # jobs begin in a shell that knows nothing of the environment of this process
            paths = {"PATH": pathlib.Path(sys.executable).parent, "PYTHONPATH": pathlib.Path(t6jax.__file__).parent.parent}
            setting = "; ".join(f"export {name}={shlex.quote(str(path))}:${name}" for name, path in paths.items())
            options = self._options | {"slurm_logs_folder": logs, "env_command": setting, "qos": None}
            return SlurmExecutor(**common, job_name="t6jax-prepare", **options)
        try:
            from datatrove.executor import RayPipelineExecutor

            return RayPipelineExecutor(**common, **self._options)
        except ImportError as e:
            raise InputError(f"--executor=ray needs Ray: pip install 'datatrove[ray]' ({e})") from e


def check_executor(executor: str, workers: int) -> None:
    """Raises InputError unless `make_producer` takes these."""
    if executor not in EXECUTORS:
        raise InputError(f"--executor must be one of {', '.join(EXECUTORS)}; got {executor!r}")
    if workers < 1:
        raise InputError(f"--workers must be at least 1; got {workers}")


def make_producer(executor: str, workers: int, options: Mapping[str, Any]) -> Producer:
    """executor: one of EXECUTORS. options: of datatrove's executor, such as Slurm's time and partition."""
    if executor == "local" and workers == 1:
        return InProcess()
    return Datatrove(executor, workers, options)
