"""Where units are tokenized: in this process, or by datatrove in local processes, Slurm or Ray."""

import hashlib
import importlib.util
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any, Protocol

from t6jax.data.tokenized import TOKENIZED, error_path, tokenize_unit, unit_path
from t6jax.errors import InputError

if TYPE_CHECKING:
    from datatrove.executor.base import PipelineExecutor

EXECUTORS = ("local", "slurm", "ray")
PACKAGE_FOLDER = str(pathlib.Path(__file__).parents[2])
SLURM_ASKED_SECONDS = 30
SLURM_END_SECONDS = 60
SLURM_ARRAY = 1000  # jobs: Slurm's own limit, where MaxArraySize is not set


class Producer(Protocol):
    """Tokenizes the units of a plan, roughly in their order."""

    def start(self, work: pathlib.Path, first: int, count: int) -> None:
        """Starts with unit `first` of `count`; work: the folder of the preparation."""
        ...

    def poll(self, work: pathlib.Path, index: int) -> bool:
        """Whether the unit is tokenized. The units before it are no longer needed.

        Raises:
            InputError: if it cannot be tokenized.
        """
        ...

    def stop(self) -> None:
        """Ends what is still running, or waits for its end."""
        ...


class InProcess:
    """Tokenizes each unit when it is polled."""

    def start(self, work: pathlib.Path, first: int, count: int) -> None:
        pass

    def poll(self, work: pathlib.Path, index: int) -> bool:
        tokenize_unit(work, index)
        return True

    def stop(self) -> None:
        pass


class Local:
    """Tokenizes in processes of this machine."""

    name = "local"

    def __init__(self, workers: int, options: Mapping[str, Any]):
        self._workers, self._options = workers, options
        self._error: BaseException | None = None
        self._ended = False
        self._stopped = threading.Event()
        self._wanted = self._count = 0
        self._thread: threading.Thread | None = None

    def start(self, work: pathlib.Path, first: int, count: int) -> None:
        self._wanted, self._count = first, count
        self._running = self._make(work.absolute(), first, count)

        def target():
            try:
                self._running.run()
                self._ended = True
            except BaseException as e:
                self._error = e

        self._thread = threading.Thread(target=target, daemon=True)
        self._thread.start()

    def poll(self, work: pathlib.Path, index: int) -> bool:
        self._wanted = index
        error, lost = self._error, self._lost(work, index)
        if unit_path(work, index).exists():
            self._wanted = index + 1
            return True
        if isinstance(error, InputError):
            raise error
        if isinstance(error, BrokenExecutor):
            raise InputError(
                "a worker process was killed (did memory run out?): give the same command again to "
                "continue, perhaps with fewer --workers"
            ) from error
        if isinstance(error, subprocess.CalledProcessError):
            raise InputError(
                f"{error.cmd[0]} failed for the reason above: check --slurm_partition, "
                "--slurm_time, and what sbatch reads from the environment (SBATCH_ACCOUNT, "
                "SBATCH_QOS)"
            ) from error
        if error is not None:
            what = f"{type(error).__name__}: {error}"
            raise InputError(
                f"a task of the {self.name} executor failed ({what}); see {work / 'datatrove'}"
            ) from error
        if lost:
            raise InputError(
                f"a task of the {self.name} executor ended without a result (cancelled, or out of "
                "memory or time?): give the same command again to continue; see "
                f"{work / 'datatrove'}"
            )
        return False

    def stop(self) -> None:
        self._stopped.set()
        if self._thread:
            self._thread.join()

    def _make(self, work: pathlib.Path, first: int, count: int) -> "PipelineExecutor":
        from t6jax.data.tasks import LocalExecutor

        return LocalExecutor(work, first, count, self._workers, self._may_begin, self._stopped)

    def _may_begin(self, index: int) -> bool:
        """Whether a unit is near enough to the one that is needed next.

        Near enough that no worker waits, and not further, to save space on disk.
        """
        return index < self._wanted + 4 * self._workers + 4

    def _lost(self, work: pathlib.Path, index: int) -> bool:
        """Whether no task is left that could tokenize the unit."""
        return self._ended


class Ray(Local):
    """Tokenizes on the Ray cluster of RAY_ADDRESS, or on a new one of this machine."""

    name = "ray"

    def _make(self, work: pathlib.Path, first: int, count: int) -> "PipelineExecutor":
        import ray  # pyright: ignore[reportMissingImports] # optional

        from t6jax.data.tasks import RayExecutor

        if not ray.is_initialized():
            paths = os.pathsep.join(filter(None, (PACKAGE_FOLDER, os.environ.get("PYTHONPATH"))))
            ray.init(
                runtime_env={"env_vars": {"PYTHONPATH": paths}},
                logging_level="error",
                log_to_driver=False,
            )
        return RayExecutor(work, first, count, self._workers, self._may_begin, self._stopped)


class Slurm(Local):
    """Tokenizes in the jobs of a Slurm array, whose name is unique to the preparation."""

    name = "slurm"

    def stop(self) -> None:
        if self._thread:
            self._thread.join()
            self._end(cancel=self._wanted < self._count)

    def _make(self, work: pathlib.Path, first: int, count: int) -> "PipelineExecutor":
        from t6jax.data.tasks import SlurmExecutor

        if " " in str(work):
            raise InputError(
                f"sbatch takes no path with spaces, as in --out={work.with_suffix('')}: give "
                "another"
            )
        self._job_name = f"t6jax-prepare-{hashlib.sha256(os.fsencode(work)).hexdigest()[:8]}"
        self._asked, self._gone = time.monotonic(), False
        if self._queued():  # jobs of a process that was killed
            self._end(cancel=True)
        for path in (work / TOKENIZED).glob("*.error"):
            path.unlink()
        # jobs start in a shell without this process's environment
        paths = {"PATH": str(pathlib.Path(sys.executable).parent), "PYTHONPATH": PACKAGE_FOLDER}
        setting = "; ".join(
            f"export {name}={shlex.quote(path)}:${name}" for name, path in paths.items()
        )
        return SlurmExecutor(
            work,
            first,
            count,
            self._workers,
            job_name=self._job_name,
            slurm_logs_folder=str(work / "datatrove" / "slurm"),
            env_command=setting,
            qos=None,
            tasks_per_job=-(-count // SLURM_ARRAY),
            # inside a job, srun would find two requests for memory, and refuse
            with_srun=False,
            **self._options,
        )

    def _lost(self, work: pathlib.Path, index: int) -> bool:
        if error_path(work, index).exists():
            raise InputError(error_path(work, index).read_text())
        # Asked from time to time, and believed the second time: on a shared disk the file may
        # appear late.
        running = self._thread is not None and self._thread.is_alive()
        if running or time.monotonic() - self._asked < SLURM_ASKED_SECONDS:
            return False
        self._asked = time.monotonic()
        queued = self._queued()
        executor: Any = self._running  # of _make: a SlurmExecutor
        gone = queued is not None and executor.job_of(index) not in queued
        gone, self._gone = gone and self._gone == index, index if gone else None
        return gone

    def _end(self, cancel: bool) -> None:
        if cancel:
            subprocess.run(["scancel", f"--name={self._job_name}"], check=False)
        until = time.monotonic() + SLURM_END_SECONDS
        # they write to the folder that is deleted next
        while self._queued() != set() and time.monotonic() < until:
            time.sleep(0.5)

    def _queued(self) -> set[str] | None:
        """The jobs that wait or run, as ARRAY_INDEX; None if Slurm does not answer."""
        ask = ["squeue", "--noheader", "--array", f"--name={self._job_name}", "--format=%F_%K"]
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
        return None if answer.returncode else set(answer.stdout.split())


def check_executor(executor: str, workers: int) -> None:
    """Raises InputError unless `make_producer` takes these arguments."""
    if executor not in EXECUTORS:
        raise InputError(f"--executor must be one of {', '.join(EXECUTORS)}; got {executor!r}")
    if workers < 1:
        raise InputError(f"--workers must be at least 1; got {workers}")
    if executor == "slurm" and not shutil.which("sbatch"):
        raise InputError(
            "--executor=slurm needs Slurm's commands, but sbatch is not in PATH: run it on a login "
            "node"
        )
    if executor == "ray" and not importlib.util.find_spec("ray"):
        raise InputError("--executor=ray needs Ray: pip install 'datatrove[ray]'")


def make_producer(executor: str, workers: int, options: Mapping[str, Any]) -> Producer:
    """Makes the producer of an executor.

    Args:
        executor: one of EXECUTORS.
        workers: processes, or Slurm or Ray tasks at a time; 1 with "local" is this process.
        options: of datatrove's executor, such as Slurm's time and partition.
    """
    if executor == "local" and workers == 1:
        return InProcess()
    return {"local": Local, "slurm": Slurm, "ray": Ray}[executor](workers, options)
