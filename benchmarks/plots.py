"""What the plots share: matplotlib, which is imported only to draw."""

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

from benchmarks.record import Record


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt


def draw(plots: Callable[[Record, pathlib.Path], Any], record: Record, out: pathlib.Path) -> None:
    """Draws a record's plots, or says how to where matplotlib is missing, as on a GPU machine."""
    if importlib.util.find_spec("matplotlib"):
        plots(record, out)
    else:
        print("no plots, because matplotlib is not installed: pip install matplotlib")
