"""What datatrove runs: a pipeline of one step, which tokenizes the unit of its task's rank; and its executor on one machine."""

import os
import pathlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context, parent_process

from datatrove.executor import SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from t6jax.data.parts import part_path, tokenize_unit

# a task would report its start, pipeline and statistics on the terminal; what fails is raised
logger.disable("datatrove")


class TokenizeUnits(PipelineStep):
    """Task n writes part n of the preparation in the folder `work`."""

    type = "TOKENIZER"
    name = "t6jax"

    def __init__(self, work: pathlib.Path):
        super().__init__()
        self._work = work

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tasks are what runs in parallel
        tokenize_unit(self._work, rank)
        if (path := part_path(self._work, rank)).exists():  # unless it is in a shard by now
            self.stat_update("bytes", value=path.stat().st_size, unit="unit")
        return
        yield  # a step is a generator


class LocalExecutor(PipelineExecutor):
    """Tasks first to tasks - 1 over processes of this machine.

    In place of datatrove's own LocalPipelineExecutor, which waits for ever for the task of a process that was killed (as it
    is where memory runs out), leaves processes behind when it is killed itself, and runs ahead without bound.

    may_begin: rank -> whether the task may begin. stopped: set from another thread to end early.
    """

    def __init__(
        self,
        work: pathlib.Path,
        first: int,
        tasks: int,
        workers: int,
        may_begin: Callable[[int], bool],
        stopped: threading.Event,
    ):
        super().__init__([TokenizeUnits(work)], str(work / "datatrove"), skip_completed=False)
        self._first, self._tasks, self._workers = first, tasks, workers
        self._may_begin, self._stopped = may_begin, stopped

    @property
    def world_size(self) -> int:
        return self._tasks

    def get_distributed_env(self, node_rank: int = -1) -> dict[str, str]:
        keys = ("node_ips", "cpus_per_task", "mem_per_cpu", "gpus_on_node")
        return {f"datatrove_{key}": "" for key in keys} | {"datatrove_executor": "LOCAL"}

    def run(self) -> None:
        """Runs the tasks in order; raises the first error of one, BrokenProcessPool where a process was killed."""
        running: set[Future] = set()
        pool = ProcessPoolExecutor(self._workers, get_context("forkserver"), initializer=_end_with_parent)
        try:
            for rank in range(self._first, self._tasks):
                while len(running) > self._workers or not self._may_begin(rank):
                    done, running = wait(running, 0.1, FIRST_COMPLETED) if running else (time.sleep(0.05) or set(), running)
                    for future in done:
                        future.result()
                    if self._stopped.is_set():
                        return
                running.add(pool.submit(self._run_for_rank, rank, 1))
            for future in running:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_may_begin": None, "_stopped": None}  # of no use in a task's process


class SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's executor on Slurm, without its last job, which would gather statistics in a folder that is gone by then."""

    def launch_merge_stats(self) -> None:
        pass


def _end_with_parent() -> None:
    """Ends this worker when the process that started it is gone, as after kill -9, for a new one to take over."""
    parent = parent_process()

    def watch():
        while parent.is_alive():
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
