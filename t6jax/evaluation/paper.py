"""The paper's evaluation: its tasks and metrics (section 5.1), its rows (Tables 2 to 8 and 11 to
18), and its table.
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
    """label: of the table's column. task: the harness's name. metric: of the task that the column
    shows.
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
# the folders of the harness's tasks that hold them
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
# metrics that the table gives in per cent; an average is taken of these alone
FRACTIONS = ("acc", "acc_norm", "exact_match", "f1", "em")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A metric of a task, in per cent where it is a fraction; None: not known."""

    value: float | None
    standard_error: float | None = None


@dataclasses.dataclass(frozen=True)
class TableRow:
    """average: of the columns, where all are fractions and there are several."""

    label: str
    cells: tuple[Cell, ...]
    average: Cell | None


def columns_of(results: Mapping[str, Any], requested: Sequence[str]) -> tuple[Column, ...]:
    """A column for each task or group that was asked for, of what the harness returned.

    The paper's tasks have the paper's column; others their name and their first metric, normalised
    accuracy before accuracy. What was asked for by a name that stands for several tasks has a
    column for each.
    """
    of_group = {
        task for name in requested for task in results.get("group_subtasks", {}).get(name, ())
    }
    found = results["results"]
    names = [name for name in requested if _metrics(found.get(name, {}))]
    names += [
        task
        for task in found
        if task not in names and task not in of_group and _metrics(found[task])
    ]
    paper = {column.task: column for column in COLUMNS}
    return tuple(paper.get(name) or _column(name, found[name]) for name in names)


def _column(name: str, result: Mapping[str, Any]) -> Column:
    metrics = _metrics(result)
    metric = next((m for m in ("acc_norm", "acc") if m in metrics), metrics[0])
    return Column(f"{name} {metric}", name, metric)


def _metrics(result: Mapping[str, Any]) -> list[str]:
    """Names of the metrics of a task's result, whose keys are "metric,filter"."""
    return [
        key.split(",")[0]
        for key in result
        if "," in key and not key.split(",")[0].endswith("_stderr")
    ]


def row_of(label: str, results: Mapping[str, Any], columns: Sequence[Column]) -> TableRow:
    """The row of a model, of what the harness returned."""
    cells = []
    for column in columns:
        result = results["results"].get(column.task, {})
        key = next((key for key in result if key.split(",")[0] == column.metric), None)
        scale = 100 if column.metric in FRACTIONS else 1
        number = lambda x, scale=scale: (
            scale * x if isinstance(x, int | float) and math.isfinite(x) else None
        )
        error = result.get(key.replace(",", "_stderr,", 1)) if key else None
        cells.append(Cell(number(result[key]) if key else None, number(error)))
    return TableRow(label, tuple(cells), average(cells) if averages(columns) else None)


def averages(columns: Sequence[Column]) -> bool:
    """Whether the columns have an average."""
    return len(columns) > 1 and all(column.metric in FRACTIONS for column in columns)


def average(cells: Sequence[Cell]) -> Cell:
    """The mean, and its standard error, the columns' errors taken as independent."""
    values, errors = [c.value for c in cells], [c.standard_error for c in cells]
    if None in values:
        return Cell(None)
    return Cell(
        sum(values) / len(cells), None if None in errors else math.hypot(*errors) / len(cells)
    )


def paper_row(name: str, num_fewshot: int, columns: Sequence[Column]) -> TableRow:
    """The paper's own row: of "size/mechanism" with so many shots. Raises InputError where there is
    none.
    """
    data = json.loads(ROWS.read_text())
    here = {row["name"]: row for row in data["rows"] if row["num_fewshot"] == num_fewshot}
    if not here:
        raise InputError(
            f"the paper has no row with {num_fewshot} shots: --paper_row goes with --num_fewshot=0 "
            "or 2"
        )
    if name not in here:
        close = difflib.get_close_matches(name, here, 3) or sorted(here)
        raise InputError(
            f"--paper_row={name!r} is no row of the paper; there is {', '.join(close)}"
        )
    row = here[name]
    scores = dict(zip(data["columns"], row["scores"], strict=True))
    cells = tuple(Cell(scores.get(column.label)) for column in columns)
    whole = {column.label for column in columns} == set(data["columns"])
    return TableRow(
        f"paper, Table {row['table']}, {row['method']}",
        cells,
        (Cell(row["average"]) if whole else average(cells)) if averages(columns) else None,
    )


def table(columns: Sequence[Column], rows: Sequence[TableRow]) -> str:
    """The layout of Tables 2 and 3, with the standard errors below each row that has them."""
    labels = [column.label for column in columns] + ["Avg."] * averages(columns)
    first = max(len(label) for label in ["Method", *(row.label for row in rows)])
    widths = [max(7, len(label) + 2) for label in labels]
    line = lambda label, cells: (
        f"{label:<{first}}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
    )
    shown = lambda x: "-" if x is None else f"{x:.2f}"
    lines = [line("Method", labels)]
    for row in rows:
        cells = [*row.cells, row.average] if row.average else list(row.cells)
        lines.append(line(row.label, [shown(cell.value) for cell in cells]))
        if any(cell.standard_error is not None for cell in cells):
            lines.append(line("  standard error", [shown(cell.standard_error) for cell in cells]))
    return "\n".join(lines)
