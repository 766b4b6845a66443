"""What datatrove runs: a pipeline of one step that tokenizes a unit, and executors that run it.

Task n tokenizes unit n of the plan.
"""

import os
import pathlib
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context, parent_process
from typing import Any

from t6jax.data.tokenized import error_path, tokenize_unit, unit_path
from t6jax.errors import InputError
from t6jax.extras import needs
from t6jax.files import write_atomically

with needs("data"):
    from datatrove.executor import SlurmPipelineExecutor
    from datatrove.executor.base import PipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from datatrove.utils.logging import logger
    from datatrove.utils.stats import PipelineStats

# Otherwise each task prints its start, pipeline and statistics. Errors are raised all the same.
logger.disable("datatrove")
TASK_BYTES = 2**31  # of memory that Ray reserves for a task, as datatrove does under Slurm


class TokenizeUnits(PipelineStep):
    """Writes the tokens of unit n, in task n, to the folder `work` of a preparation."""

    type = "TOKENIZER"
    name = "t6jax"

    def __init__(self, work: pathlib.Path):
        super().__init__()
        self._work = work

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tasks run in parallel already
        tokenize_unit(self._work, rank)
        if (path := unit_path(self._work, rank)).exists():  # it is deleted when a shard has it
            self.stat_update("bytes", value=path.stat().st_size, unit="unit")
        return
        yield  # a step is a generator


class _InOrder(PipelineExecutor):
    """Runs tasks in their order, a limited number at a time."""

    def __init__(
        self,
        work: pathlib.Path,
        first: int,
        tasks: int,
        workers: int,
        may_begin: Callable[[int], bool],
        stopped: threading.Event,
    ):
        """
        Args:
            work: the folder of the preparation.
            first: the first task.
            tasks: the number of all tasks; the last is tasks - 1.
            workers: how many run at a time.
            may_begin: rank -> whether the task may begin.
            stopped: is set by another thread to end early.
        """
        super().__init__([TokenizeUnits(work)], str(work / "datatrove"), skip_completed=False)
        self._first, self._tasks, self._workers = first, tasks, workers
        self._may_begin, self._stopped = may_begin, stopped

    @property
    def world_size(self) -> int:
        return self._tasks

    def get_distributed_env(self, node_rank: int = -1) -> dict[str, str]:
        keys = ("node_ips", "cpus_per_task", "mem_per_cpu", "gpus_on_node")
        return {f"datatrove_{key}": "" for key in keys} | {
            "datatrove_executor": type(self).__name__
        }

    def _run_all(
        self,
        at_once: int,
        submit: Callable[[int], Any],
        wait: Callable,
        result: Callable[[Any], Any],
    ) -> None:
        """Runs all tasks.

        Args:
            at_once: how many run at a time.
            submit: rank -> a running task.
            wait: running tasks -> (done, running), after a short while at most.
            result: raises the error of a task that is done.
        """
        running: Collection[Any] = []
        for rank in range(self._first, self._tasks):
            while len(running) >= at_once or not self._may_begin(rank):
                done, running = wait(running) if running else (time.sleep(0.05) or [], running)
                for task in done:
                    result(task)
                if self._stopped.is_set():
                    return
            running = [*running, submit(rank)]
        while running and not self._stopped.is_set():
            done, running = wait(running)
            for task in done:
                result(task)

    def __getstate__(self) -> dict:
        # neither can be sent to the process of a task, which needs neither
        return self.__dict__ | {"_may_begin": None, "_stopped": None}


class LocalExecutor(_InOrder):
    """Runs tasks in processes of this machine.

    It replaces datatrove's LocalPipelineExecutor, which waits forever for the task of a process
    that was killed (as when memory runs out), leaves processes running when it is killed itself,
    and has no limit on how far it runs ahead.
    """

    def run(self) -> None:
        """Raises the first error of a task; BrokenProcessPool if a process was killed."""
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imported once, not in every process
        pool = ProcessPoolExecutor(self._workers, context, initializer=_end_with_parent)
        submit = lambda rank: pool.submit(self._run_for_rank, rank, 1)
        try:
            # one task more than there are processes, so that none of them waits
            self._run_all(
                self._workers + 1,
                submit,
                lambda running: wait(running, 0.1, FIRST_COMPLETED),
                Future.result,
            )
        finally:
            pool.shutdown(cancel_futures=True)


class RayExecutor(_InOrder):
    """Runs tasks on a Ray cluster, on storage that its machines share.

    It replaces datatrove's RayPipelineExecutor, which hides a task's error, cannot be stopped, and
    has no limit on how far it runs ahead.
    """

    def run(self) -> None:
        """Raises the first error of a task; Ray's own if its process was killed repeatedly."""
        import ray  # pyright: ignore[reportMissingImports] # optional

        executor = ray.put(self)
        run = ray.remote(num_cpus=1, memory=TASK_BYTES)(_run_for_rank)
        begun = set()  # tasks that are not known to have ended

        def submit(rank):
            task = run.remote(executor, rank)
            begun.add(task)
            return task

        def result(task):
            begun.discard(task)
            try:
                ray.get(task)
            except ray.exceptions.RayTaskError as e:
                raise e.cause from e

        try:
            self._run_all(
                self._workers, submit, lambda running: ray.wait(running, timeout=0.1), result
            )
        finally:
            for task in begun:
                ray.cancel(task)
            if begun:
                ray.wait([*begun], num_returns=len(begun), timeout=60)


def _run_for_rank(executor: PipelineExecutor, rank: int) -> None:
    executor._run_for_rank(rank, 1)


class SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's executor on Slurm, for the tasks from `first` on whose tokens are missing.

    The error of a task is written to a file. datatrove's last job, which collects statistics, is
    left out: the folder that it writes to is gone by then.
    """

    def __init__(self, work: pathlib.Path, first: int, tasks: int, workers: int, **options):
        logs = str(work / "datatrove")
        super().__init__(
            [TokenizeUnits(work)],
            tasks=tasks,
            workers=workers,
            logging_dir=logs,
            skip_completed=False,
            **options,
        )
        self._work, self._first = work, first

    def get_incomplete_ranks(self, ranks=None, skip_completed=None) -> list[int]:
        self._ranks = [
            rank
            for rank in range(self._first, self.tasks)
            if not unit_path(self._work, rank).exists()
        ]
        return self._ranks

    def job_of(self, rank: int) -> str | None:
        """The job that runs a task, as ARRAY_INDEX; None if no job does."""
        if rank not in self._ranks:
            return None
        return f"{self.job_id}_{self._ranks.index(rank) // self.tasks_per_job}"

    def launch_merge_stats(self) -> None:
        pass

    def _run_for_rank(self, rank: int, *args, **options) -> PipelineStats:
        try:
            return super()._run_for_rank(rank, *args, **options)
        except Exception as e:
            message = f"a task failed ({type(e).__name__}: {e}); see {self._work}/datatrove"
            what = str(e) if isinstance(e, InputError) else message
            write_atomically(error_path(self._work, rank), what)
            raise


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone, as after kill -9, so that another takes over."""
    parent = parent_process()

    def watch():
        while parent and parent.is_alive():
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
