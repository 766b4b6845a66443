"""Writes everything that is generated from the recorded results.

    python -m benchmarks.report            # tables of the README and the docs, plots, the index
    python -m benchmarks.report --check    # exits with 1 where a table or the index is out of date

A table stands between markers in README.md or a page of docs/; benchmarks/results/README.md lists
the records.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable, Iterable

from benchmarks import (
    attention,
    decode_plots,
    decode_tables,
    evaluation,
    results_index,
    scaling_tables,
    train_tables,
)
from benchmarks.record import RESULTS, ROOT, Record, read
from benchmarks.tables import with_tables

DECODE, EVALUATION, TRAIN, SCALING, ATTENTION = (
    f"{name}.json"
    for name in (
        "decode_nvidia_h200",
        "evaluation_nvidia_h200",
        "train_nvidia_h200",
        "scaling_nvidia_h100_80gb_hbm3",
        "attention_nvidia_h200",
    )
)
TRAIN_H100 = "train_nvidia_h100_80gb_hbm3.json"
TRAIN_CUDNN = "train_cudnn_gradient_nvidia_h200.json"  # before t6jax had an attention gradient


def without_t6jax(result: Record) -> bool:
    """T6 XL's shape, which tokamax was timed on, in a run from before our forward kernel."""
    return result["shape"] == "T6 XL" and result["name"] != attention.OURS[0]


def shared_heads(result: Record) -> bool:
    """t6jax and cuDNN where several multiprocessors share a head in that run."""
    return attention.SHAPES[result["shape"]][1] >= 1024 and result["name"] in attention.OURS


def attention_of(kept: Callable[[Record], bool]) -> Callable[[Record], str]:
    """The attention table of some of a record's results."""

    def table(record: Record) -> str:
        return attention.table(record | {"results": [r for r in record["results"] if kept(r)]})

    return table


# the table that a marker names: (what makes it, its record)
TABLES: dict[str, tuple[Callable[[Record], str], str]] = {
    "decode": (decode_tables.compared, DECODE),
    "decode cases": (decode_tables.cases, DECODE),
    "evaluation": (evaluation.table, EVALUATION),
    "train": (train_tables.speed, TRAIN),
    "train kernels": (train_tables.kinds, TRAIN),
    "train, H100": (train_tables.speed, TRAIN_H100),
    "train kernels, H100": (train_tables.kinds, TRAIN_H100),
    "train, cuDNN's gradient": (train_tables.speed, TRAIN_CUDNN),
    "train kernels, cuDNN's gradient": (train_tables.kinds, TRAIN_CUDNN),
    "scaling": (scaling_tables.table, SCALING),
    "attention": (attention.table, ATTENTION),
    "attention, shared heads": (attention_of(shared_heads), "attention_teams_nvidia_h200.json"),
    "attention, tokamax": (
        attention_of(without_t6jax),
        "attention_tokamax_nvidia_h200.json",
    ),
}


def pages() -> list[pathlib.Path]:
    """The README and the pages of docs/ that show a generated table."""
    all_pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in all_pages if "<!-- benchmarks.report: " in page.read_text()]


def with_records(text: str) -> str:
    """A page with its tables as the recorded results have them."""

    def table(make: Callable[[Record], str], file: str) -> str:
        return make(read(file))

    made = {name: functools.partial(table, *how) for name, how in TABLES.items()}
    return with_tables(text, "benchmarks.report", made)


def draw() -> list[pathlib.Path]:
    """Draws the plots of the records that the docs show."""
    return [
        *decode_plots.draw(read(DECODE), RESULTS),
        train_tables.draw(read(TRAIN), RESULTS),
    ]


def generated() -> Iterable[tuple[pathlib.Path, str]]:
    """Every generated text: (file, its contents as they should be)."""
    for page in pages():
        yield page, with_records(page.read_text())
    yield RESULTS / "README.md", results_index.page()


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--check", action="store_true", help="write nothing")
    args = arguments.parse_args()
    stale = [path for path, text in generated() if not path.exists() or path.read_text() != text]
    if args.check:
        if stale:
            names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
            sys.exit(f"out of date: {names}; run python -m benchmarks.report")
        return
    draw()
    for path, text in generated():
        path.write_text(text)


if __name__ == "__main__":
    main()
