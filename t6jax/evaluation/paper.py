"""The paper's evaluation: its tasks and metrics (section 5.1), its rows and its table.

The rows are those of Tables 2 to 8 and 11 to 18, in paper_results.json.
"""

import dataclasses
import difflib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from t6jax.errors import InputError

ROWS = pathlib.Path(__file__).parent / "paper_results.json"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
      label: the heading.
      task: the harness's name of the task.
      metric: the task's metric that the column shows.
    """

    label: str
    task: str
    metric: str


COLUMNS = (
    Column("ARC-E", "arc_easy", "acc_norm"),
    Column("ARC-C", "arc_challenge", "acc_norm"),
    Column("BoolQ", "boolq", "acc"),
    Column("HellaSw.", "hellaswag", "acc_norm"),
    Column("OBQA", "openbookqa", "acc_norm"),
    Column("PIQA", "piqa", "acc_norm"),
    Column("W.G.", "winogrande", "acc"),
    Column("MMLU", "mmlu", "acc"),
    Column("SciQ", "sciq", "acc_norm"),
)
# The folders of the harness that hold these tasks.
TASK_FOLDERS = (
    "arc",
    "super_glue/boolq",
    "hellaswag",
    "openbookqa",
    "piqa",
    "winogrande",
    "mmlu",
    "sciq",
)
# The metrics that the table gives in per cent. Only these are averaged.
FRACTIONS = ("acc", "acc_norm", "exact_match", "f1", "em")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A metric of a task, in per cent if it is a fraction.

    Attributes:
      value: the metric; None: unknown.
      standard_error: its standard error; None: unknown.
    """

    value: float | None
    standard_error: float | None = None


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of the table.

    Attributes:
      label: what the row is of.
      cells: one for each column.
      average: the mean of the cells; None where the columns have none (`has_average`).
    """

    label: str
    cells: tuple[Cell, ...]
    average: Cell | None


def result_columns(results: Mapping[str, Any], requested: Sequence[str]) -> tuple[Column, ...]:
    """The columns for the tasks and groups that were requested.

    A task of the paper has the paper's column. Any other has its name and its first metric, with
    normalised accuracy before accuracy. A requested name that stands for several tasks (a tag, a
    pattern) has a column for each of them.

    Args:
      results: what the harness returned.
      requested: names of tasks, groups and tags.
    """
    found = results["results"]
    subtasks = results.get("group_subtasks", {})
    in_groups = {task for name in requested for task in subtasks.get(name, ())}
    names = [name for name in requested if _metrics(found.get(name, {}))]
    names += [
        task
        for task in found
        if task not in names and task not in in_groups and _metrics(found[task])
    ]
    paper = {column.task: column for column in COLUMNS}
    return tuple(paper.get(name) or _column(name, found[name]) for name in names)


def _column(name: str, result: Mapping[str, Any]) -> Column:
    metrics = _metrics(result)
    metric = next((m for m in ("acc_norm", "acc") if m in metrics), metrics[0])
    return Column(f"{name} {metric}", name, metric)


def _metrics(result: Mapping[str, Any]) -> list[str]:
    """The names of the metrics of a task's result, whose keys are "metric,filter"."""
    return [
        key.split(",")[0]
        for key in result
        if "," in key and not key.split(",")[0].endswith("_stderr")
    ]


def result_row(label: str, results: Mapping[str, Any], columns: Sequence[Column]) -> TableRow:
    """The row of a model.

    Args:
      label: what the row is of.
      results: what the harness returned.
      columns: the columns of the table.
    """
    return _row(
        label, [_cell(results["results"].get(c.task, {}), c.metric) for c in columns], columns
    )


def _cell(result: Mapping[str, Any], metric: str) -> Cell:
    key = next((key for key in result if key.split(",")[0] == metric), None)
    if key is None:
        return Cell(None)
    scale = 100 if metric in FRACTIONS else 1

    def number(x: Any) -> float | None:
        return scale * x if isinstance(x, int | float) and math.isfinite(x) else None

    return Cell(number(result[key]), number(result.get(key.replace(",", "_stderr,", 1))))


def _row(label: str, cells: Sequence[Cell], columns: Sequence[Column]) -> TableRow:
    return TableRow(label, tuple(cells), mean_of(cells) if has_average(columns) else None)


def has_average(columns: Sequence[Column]) -> bool:
    """Whether the columns can be averaged: there are several, and all are fractions."""
    return len(columns) > 1 and all(column.metric in FRACTIONS for column in columns)


def mean_of(cells: Sequence[Cell]) -> Cell:
    """The mean of the cells and its standard error, with the errors taken as independent."""
    values = [cell.value for cell in cells if cell.value is not None]
    errors = [cell.standard_error for cell in cells if cell.standard_error is not None]
    if len(values) < len(cells):
        return Cell(None)
    error = math.hypot(*errors) / len(cells) if len(errors) == len(cells) else None
    return Cell(sum(values) / len(cells), error)


def paper_row(name: str, num_fewshot: int, columns: Sequence[Column]) -> TableRow:
    """A row as the paper prints it.

    Args:
      name: "size/mechanism".
      num_fewshot: the number of shots.
      columns: the columns of the table; those that the paper does not have stay empty.

    Raises:
      InputError: if the paper has no such row.
    """
    data = json.loads(ROWS.read_text())
    rows = {row["name"]: row for row in data["rows"] if row["num_fewshot"] == num_fewshot}
    if not rows:
        raise InputError(
            f"the paper has no row with {num_fewshot} shots: --paper_row goes with --num_fewshot=0 "
            "or 2"
        )
    if name not in rows:
        close = difflib.get_close_matches(name, rows, 3) or sorted(rows)
        raise InputError(
            f"--paper_row={name!r} is not a row of the paper; take one of {', '.join(close)}"
        )
    row = rows[name]
    scores = dict(zip(data["columns"], row["scores"], strict=True))
    ours = _row(
        f"paper, Table {row['table']}, {row['method']}",
        [Cell(scores.get(column.label)) for column in columns],
        columns,
    )
    if {column.label for column in columns} == set(data["columns"]):  # the average as printed
        return dataclasses.replace(ours, average=Cell(row["average"]))
    return ours


def format_table(columns: Sequence[Column], rows: Sequence[TableRow]) -> str:
    """The table in the layout of Tables 2 and 3.

    A row that has standard errors is followed by a line of them.
    """
    labels = [column.label for column in columns] + ["Avg."] * has_average(columns)
    first = max(len(label) for label in ["Method", *(row.label for row in rows)])
    widths = [max(7, len(label) + 2) for label in labels]

    def line(label: str, cells: Sequence[str]) -> str:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        return f"{label:<{first}}" + "".join(padded)

    def number(x: float | None) -> str:
        return "-" if x is None else f"{x:.2f}"

    lines = [line("Method", labels)]
    for row in rows:
        cells = [*row.cells, row.average] if row.average else list(row.cells)
        lines.append(line(row.label, [number(cell.value) for cell in cells]))
        if any(cell.standard_error is not None for cell in cells):
            lines.append(line("  standard error", [number(cell.standard_error) for cell in cells]))
    return "\n".join(lines)
