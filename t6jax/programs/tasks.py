"""What eval.py --tasks calls: lm-evaluation-harness on checkpoints, and the paper's table."""

import dataclasses
import datetime
import hashlib
import json
import logging
import os
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from t6jax.errors import InputError
from t6jax.evaluation.harness import T6LM, refuse_chat_template
from t6jax.evaluation.paper import (
    COLUMNS,
    TASK_FOLDERS,
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
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

EVALUATION = "evaluation"  # the folder in a run's directory
# The "paths" of data sets that are files of the task itself.
LOCAL_FORMATS = ("json", "csv", "parquet", "text", "arrow")
HARNESS_TASKS = pathlib.Path(lm_eval.__file__).parent / "tasks"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of lm-evaluation-harness, by its own names."""

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
    """Evaluates checkpoints, prints the table, and writes the results in each run's directory.

    Progress goes to stderr.

    Args:
      ckpts: run directories, or single steps: a row of the table each.
      paper: the row of the paper to print below, as in `paper_row`; None: none.
      options: the tasks and how to run them.

    Raises:
      InputError: for whatever cannot be run, before anything is evaluated.
    """
    if options.apply_chat_template:
        refuse_chat_template()
    options = dataclasses.replace(options, limit=_checked_limit(options.limit))
    # it would warn about what is requested here: shots, limits
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    paper_tasks = [column.task for column in COLUMNS]
    requested = [
        task for name in options.tasks for task in (paper_tasks if name == "paper" else [name])
    ]
    shots = options.num_fewshot or 0
    if paper is not None:
        paper_row(paper, shots, COLUMNS)
    for ckpt in ckpts:
        workdir, _ = locate(ckpt)
        _check_writable(workdir, options.output_path)
    _say("reading the tasks and their data ...")
    tasks = LoadedTasks.find(list(dict.fromkeys(requested)), options.include_path)
    tasks.check_examples(options.num_fewshot)

    rows: list[TableRow] = []
    columns: tuple[Column, ...] = ()
    printed: TableRow | None = None
    for ckpt in ckpts:
        results, written = _evaluate(ckpt, tasks, options)
        columns = result_columns(results, tasks.names)
        label = f"{ckpt}, step {results['config']['step']}"
        rows.append(result_row(label, results, columns))
        printed = paper_row(paper, shots, columns) if paper else None
        _write(written, results, columns, rows[-1], printed)
    print(format_table(columns, rows if printed is None else [*rows, printed]))
    return 0


def _checked_limit(limit: float | None) -> float | None:
    """--limit as the harness takes it: a whole number of questions, or a part of them below 1."""
    if limit is None or 0 < limit < 1:
        return limit
    if not limit >= 1 or not float(limit).is_integer():
        raise InputError(
            f"--limit={limit:g} must be a whole number of questions, or a part of them between 0 "
            "and 1; leave it out to take all"
        )
    return int(limit)


def _check_writable(workdir: pathlib.Path, output_path: str | None) -> None:
    """Raises InputError unless results can be written: hours of evaluation would be lost."""
    folder = pathlib.Path(output_path) if output_path else workdir / EVALUATION
    flag = "--output_path" if output_path else "the run's folder of results"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise InputError(
            f"{flag}, {folder}, cannot be written to ({e.strerror}): name another folder with "
            "--output_path"
        ) from e


def _answers(workdir: pathlib.Path, step: int) -> str:
    """Where --use_cache keeps answers: in the user's cache folder.

    The harness reads them by unpickling, which runs what the file says; a run's folder may come
    from someone else.
    """
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(home) / "t6jax" / "evaluation"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise InputError(
            f"--use_cache: {folder} cannot be made ({e.strerror}): set XDG_CACHE_HOME, or leave "
            "the flag out"
        ) from e
    name = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16]
    return str(folder / f"{name}-{_identity(workdir, step)}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class LoadedTasks(TaskManager):
    """The tasks of an evaluation; their data is loaded once for all checkpoints, before any model.

    Attributes:
      names: the names of the tasks and groups, with patterns such as mmlu_* expanded.
      loaded: what the harness makes of them.
    """

    names: list[str]
    loaded: Any

    @classmethod
    def find(cls, names: Sequence[str], include_path: str | None) -> "LoadedTasks":
        """Finds the tasks and loads their data.

        Args:
          names: names or patterns of tasks, groups and tags, or YAML files.
          include_path: a folder with further tasks.

        Raises:
          InputError: if a name matches nothing, or data cannot be read.
        """
        if include_path is not None and not pathlib.Path(include_path).is_dir():
            raise InputError(f"--include_path={include_path}: there is no such folder")
        # Indexing all of the harness's 14,000 files takes 15 seconds, so the user's folder is tried
        # first, then the folders of the paper's tasks. A pattern needs the whole index.
        own: list[str | pathlib.Path] = [include_path] if include_path else []
        attempts: list[tuple[list[str | pathlib.Path], bool]] = [(own, True)]
        if not any(character in name for name in names for character in "*?["):
            attempts.insert(0, ([*cls.paper_folders(), *own], False))
            if own:
                attempts.insert(0, (own, False))
        missing = ""
        for folders, include_defaults in attempts:
            tasks = cls(include_path=folders, include_defaults=include_defaults)
            found = {
                name: [name] if pathlib.Path(name).is_file() else tasks.match_tasks([name])
                for name in names
            }
            missing = next((name for name in names if not found[name]), "")
            if not missing:
                tasks.names = list(dict.fromkeys(task for name in names for task in found[name]))
                tasks.loaded = tasks._load()
                return tasks
        raise InputError(
            f"--tasks: lm-evaluation-harness has no task {missing!r}; lm_eval ls tasks lists them, "
            "and --include_path adds a folder of yours"
        )

    def check_examples(self, num_fewshot: int | None) -> None:
        """Raises InputError if a task has fewer examples than are to stand before a question."""
        for name, task in self.loaded["tasks"].items():
            own = task.get_config("num_fewshot")
            shots = own if num_fewshot is None or own == 0 else num_fewshot
            if not shots:
                continue
            have = len(list(task.fewshot_docs() or ()))
            # a question is no example of its own
            have -= task.fewshot_cfg.split is not None and (
                task.fewshot_cfg.split == task.config.test_split
            )
            if shots > have:
                raise InputError(
                    f"--num_fewshot={shots}: the task {name} has {have} examples to take from; "
                    "give a smaller number"
                )

    @staticmethod
    def paper_folders() -> list[str]:
        """Where the harness keeps the paper's tasks."""
        return [str(HARNESS_TASKS / folder) for folder in TASK_FOLDERS]

    def load(self, task_list: Any) -> Any:
        """What is loaded already, whatever is asked for."""
        return self.loaded

    def _load(self) -> Any:
        try:
            return super().load(self.names)
        except (
            OSError,
            DatasetsError,
        ) as e:  # the network's and files' errors, as datasets has them
            reason = " ".join(str(e).split())[:200]
            sets = sorted({path for name in self.names for path in self._data_sets(name)})
            if not sets:
                raise InputError(
                    f"the data of {', '.join(self.names)} cannot be read: {reason}"
                ) from e
            raise InputError(
                f"data of the tasks is missing ({reason}): they need {', '.join(sets)}, which the "
                f"harness looks for in {constants.HF_HOME} (HF_HOME) and then on the Hugging Face "
                "Hub; connect once, or copy that folder from a machine that has run them"
            ) from e

    def _data_sets(self, name: str) -> set[str]:
        """The data sets of the Hub that a task, or the tasks of a group or tag, are made of."""
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
    """Evaluates one checkpoint.

    Returns:
      What the harness returned, and the file that it wrote.
    """
    workdir, _ = locate(ckpt)
    _say(f"loading {ckpt} ...")
    lm = T6LM(ckpt)
    step = lm.get_model_info()["step"]
    name = f"{workdir.resolve().name}-{step}"
    folder = (
        pathlib.Path(options.output_path) / name if options.output_path else workdir / EVALUATION
    )
    tracker = EvaluationTracker(output_path=str(folder / "results.json"))
    evaluated = simple_evaluate(
        model=lm,
        model_args={"model": name, "ckpt": ckpt},
        tasks=[*tasks.names],
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        use_cache=_answers(workdir, step) if options.use_cache else None,
        cache_requests=options.cache_requests,
        gen_kwargs=options.gen_kwargs,
        log_samples=options.log_samples,
        evaluation_tracker=tracker,
        task_manager=tasks,
    )
    results: dict[str, Any] = {**evaluated} if evaluated else {}
    samples: Any = results.pop("samples", None) if options.log_samples else None
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"] if samples else ():
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return results, folder / f"results_{tracker.date_id}.json"


def _identity(workdir: pathlib.Path, step: int) -> str:
    """A name that a later checkpoint in the same folder does not share: the step and its date."""
    return f"{step}-{(workdir / CHECKPOINTS / str(step)).stat().st_mtime_ns}"


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
            dataclasses.asdict(column) | dataclasses.asdict(cell)
            for column, cell in zip(columns, row.cells, strict=True)
        ],
        "average": row.average and dataclasses.asdict(row.average),
        "paper": paper
        and {
            "row": paper.label,
            "cells": [dataclasses.asdict(cell) for cell in paper.cells],
            "average": paper.average and dataclasses.asdict(paper.average),
        },
        "harness_results": written.name,
    }
    path = written.with_name(written.name.replace("results_", "table_"))
    write_atomically(path, json.dumps(record, indent=2) + "\n")
