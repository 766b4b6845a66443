"""Markdown tables, and the markers in the README and the docs between which they stand."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.record import Record

END = "<!-- end -->"


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table."""
    return [row(header), "|" + "---|" * len(header), *map(row, rows)]


def heading(record: Record) -> str:
    """Where and when a record was made, for the line above its table."""
    return f"{record['device']}, {record['date']}, JAX {record['jax']}"


def with_tables(text: str, program: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """A page with the tables that a program generates.

    Args:
        text: The page. A table stands between `<!-- program: name -->` and `<!-- end -->`.
        program: The module that generates the tables.
        tables: What makes each table, by name; only those that the page shows are made.
    Returns:
        The page, each table made anew.
    """
    for name, table in tables.items():
        begin = f"<!-- {program}: {name} -->\n"
        if begin in text:
            block = re.escape(begin) + ".*?" + re.escape(END)
            made = begin + table() + "\n" + END
            text = re.sub(block, made.replace("\\", "\\\\"), text, flags=re.S)
    return text


def row(cells: Iterable[object]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"
