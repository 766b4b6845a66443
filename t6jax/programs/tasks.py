"""What eval.py --tasks calls: lm-evaluation-harness on one checkpoint or several, and the paper's
table of the results.
"""

import dataclasses
import datetime
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from t6jax.errors import InputError
from t6jax.evaluation.harness import T6LM, refuse_chat_template
from t6jax.evaluation.paper import (
    COLUMNS,
    TASK_FOLDERS,
    Cell,
    Column,
    TableRow,
    format_table,
    paper_row,
    result_columns,
    result_row,
)
from t6jax.extras import needs
from t6jax.files import write_atomically
from t6jax.runs import CHECKPOINTS, locate

with needs("eval"):
    import lm_eval
    from datasets.exceptions import DatasetsError
    from huggingface_hub import constants
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

EVALUATION = "evaluation"  # the folder in a run's directory
LOCAL_FORMATS = (
    "json",
    "csv",
    "parquet",
    "text",
    "arrow",
)  # data set "paths" that stand for files of the task's own
HARNESS_TASKS = pathlib.Path(lm_eval.__file__).parent / "tasks"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the harness takes, by its own names."""

    tasks: Sequence[str]
    num_fewshot: int | None = None
    limit: float | None = None
    include_path: str | None = None
    output_path: str | None = None
    log_samples: bool = False
    use_cache: bool = False
    cache_requests: bool = False
    gen_kwargs: str | None = None
    apply_chat_template: bool = False


def tasks_program(ckpts: Sequence[str], paper: str | None, options: Options) -> int:
    """Prints the table, a row for each checkpoint and, where it is named, the paper's; writes the
    results beside each run.
    """
    if options.apply_chat_template:
        refuse_chat_template()
    logging.getLogger("lm_eval").setLevel(
        logging.ERROR
    )  # what it warns of is asked for here: shots, limits
    asked = list(
        dict.fromkeys(
            t
            for name in options.tasks
            for t in ([c.task for c in COLUMNS] if name == "paper" else [name])
        )
    )
    shots = options.num_fewshot or 0
    if paper is not None:
        paper_row(paper, shots, COLUMNS)  # a wrong name is told before the work
    for ckpt in ckpts:
        locate(ckpt)
    tasks = LoadedTasks.of(asked, options.include_path)

    rows: list[TableRow] = []
    columns: tuple[Column, ...] = ()
    for ckpt in ckpts:
        results, written = _evaluate(ckpt, tasks, options)
        columns = result_columns(results, tasks.names)
        label = f"{ckpt}, step {results['config']['step']}"
        rows.append(result_row(label, results, columns))
        theirs = paper_row(paper, shots, columns) if paper else None
        _write(written, results, columns, rows[-1], theirs)
    print(format_table(columns, rows + ([theirs] if paper else [])))
    return 0


class LoadedTasks(TaskManager):
    """The tasks of an evaluation, whose data is loaded once, before any model, for all checkpoints.

    names: of the tasks and groups, patterns such as mmlu_* spelled out.
    """

    names: list[str]

    @classmethod
    def of(cls, names: Sequence[str], include_path: str | None) -> "LoadedTasks":
        """Raises InputError for names that no task has, and where data is not to be had."""
        if include_path is not None and not pathlib.Path(include_path).is_dir():
            raise InputError(f"--include_path={include_path}: there is no such folder")
        # reading the harness's 14,000 files takes a quarter of a minute: first where the paper's
        # tasks and the user's are
        own = [include_path] if include_path else []
        pattern = any(character in name for name in names for character in "*?[")
        for paths, whole in ((own, False), (cls.paper_folders() + own, False), (own, True)):
            if not whole and (pattern or not paths):
                continue
            manager = cls(include_path=paths, include_defaults=whole)
            found = {
                name: [name] if pathlib.Path(name).is_file() else manager.match_tasks([name])
                for name in names
            }
            missing = [name for name in names if not found[name]]
            if not missing:
                break
        if missing:
            raise InputError(
                f"--tasks: lm-evaluation-harness has no task {missing[0]!r}; lm_eval ls tasks "
                "lists them, and --include_path "
                "names a folder of your own"
            )
        manager.names = list(dict.fromkeys(name for name in names for name in found[name]))
        manager._loaded = manager._load()
        return manager

    @staticmethod
    def paper_folders() -> list[str]:
        """Where the harness keeps the paper's tasks."""
        return [str(HARNESS_TASKS / folder) for folder in TASK_FOLDERS]

    def load(self, task_list: Any) -> Any:
        return self._loaded

    def _load(self) -> Any:
        try:
            return super().load(self.names)
        except (
            OSError,
            DatasetsError,
        ) as e:  # of the network and of files, whatever the data sets library makes of them
            reason = " ".join(str(e).split())[:200]
            sets = sorted({path for name in self.names for path in self._data_sets(name)})
            if not sets:
                raise InputError(
                    f"the data of {', '.join(self.names)} cannot be read: {reason}"
                ) from e
            raise InputError(
                f"the tasks' data is not all there ({reason}): they need {', '.join(sets)}, which "
                "the harness looks for in "
                f"{constants.HF_HOME} (HF_HOME) and then on the Hugging Face Hub; connect once, or "
                "copy that folder from a "
                "machine that has run them"
            ) from e

    def _data_sets(self, name: str) -> set[str]:
        """The data sets of the Hub that a task, or what a group holds, is made of."""
        entry = self.task_index.get(name)
        if entry is None:
            return set()
        config = entry.cfg or {}
        path = config.get("dataset_path")
        children = config.get("task", []) if "group" in config else [] if config else entry.tags
        names = [child if isinstance(child, str) else child.get("task") for child in children]
        below = {path for child in names if child != name for path in self._data_sets(child)}
        return below | ({str(path)} if path and path not in LOCAL_FORMATS else set())


def _evaluate(
    ckpt: str, tasks: LoadedTasks, options: Options
) -> tuple[dict[str, Any], pathlib.Path]:
    """What the harness returned, and the file that it wrote."""
    workdir, _ = locate(ckpt)
    lm = T6LM(ckpt)
    step = lm.get_model_info()["step"]
    name = f"{workdir.resolve().name}-{step}"
    folder = (
        pathlib.Path(options.output_path) / name if options.output_path else workdir / EVALUATION
    )
    tracker = EvaluationTracker(output_path=str(folder / "results.json"))
    results = simple_evaluate(
        model=lm,
        model_args={"model": name, "ckpt": ckpt},
        tasks=tasks.names,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        use_cache=str(workdir / EVALUATION / f"responses-{_identity(workdir, step)}")
        if options.use_cache
        else None,
        cache_requests=options.cache_requests,
        gen_kwargs=options.gen_kwargs,
        log_samples=options.log_samples,
        evaluation_tracker=tracker,
        task_manager=tasks,
    )
    samples = results.pop("samples") if options.log_samples else None
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"] if samples else ():
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return results, folder / f"results_{tracker.date_id}.json"


def _identity(workdir: pathlib.Path, step: int) -> str:
    """A name that a checkpoint shares with no other that may come to lie in its place: its step,
    and when it was saved.
    """
    return f"{step}-{(workdir / CHECKPOINTS / str(step)).stat().st_mtime_ns}"


def _plain(cell: Cell | None) -> dict[str, float | None] | None:
    return None if cell is None else dataclasses.asdict(cell)


def _write(
    written: pathlib.Path,
    results: Mapping[str, Any],
    columns: Sequence[Column],
    row: TableRow,
    paper: TableRow | None,
) -> None:
    """Writes the row as JSON next to the harness's results."""
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "checkpoint": results["config"]["ckpt"],
        "step": results["config"]["step"],
        "num_fewshot": dict(results["n-shot"]),
        "limit": results["config"]["limit"],
        "lm_eval": lm_eval.__version__,
        "jax": jax.__version__,
        "device": jax.local_devices()[0].device_kind,
        "columns": [
            dataclasses.asdict(column) | _plain(cell)
            for column, cell in zip(columns, row.cells, strict=True)
        ],
        "average": _plain(row.average),
        "paper": paper
        and {
            "row": paper.label,
            "cells": [_plain(cell) for cell in paper.cells],
            "average": _plain(paper.average),
        },
        "harness_results": written.name,
    }
    path = written.with_name(written.name.replace("results_", "table_"))
    write_atomically(path, json.dumps(record, indent=2) + "\n")
