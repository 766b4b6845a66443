"""The pipeline that datatrove runs: one step, which tokenizes the unit of its task's rank."""

import os
import pathlib
import threading
import time

import multiprocess
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from t6jax.data.parts import part_path, tokenize_unit

# a task would report its start, pipeline and statistics on the terminal; what fails is raised, and logged by the run
logger.disable("datatrove")


class TokenizeUnits(PipelineStep):
    """Task n writes part n of the preparation in the folder `work`, unless it is used up already."""

    type = "TOKENIZER"
    name = "t6jax"

    def __init__(self, work: pathlib.Path):
        super().__init__()
        self._work = work

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        _end_with_parent()
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tasks are what runs in parallel
        tokenize_unit(self._work, rank)
        self.stat_update("bytes", value=part_path(self._work, rank).stat().st_size, unit="unit")
        return
        yield  # a step is a generator


def _end_with_parent() -> None:
    """Ends this worker when the process that started it is gone, as after kill -9, for a new one to take over."""
    parent = multiprocess.parent_process()
    if parent is None or any(t.name == "end with parent" for t in threading.enumerate()):
        return

    def watch():
        while parent.is_alive():
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
