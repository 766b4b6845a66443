"""The tables of benchmarks.scaling's record."""

from benchmarks.layouts import NVLINK, sent
from benchmarks.record import Record
from benchmarks.tables import heading, markdown

HEADER = (
    "mesh",
    "tokens/s",
    "of twice one GPU's",
    "largest difference of losses",
    "GB of results a step, by collective",
    "ms of collectives a step on each GPU",
    "at the links' rate",
)


def table(record: Record) -> str:
    """Tokens a second of each mesh, and the time of its collectives.

    The last column is what the collectives' bytes take at the links' rate.
    """
    above = (
        f"{heading(record)}: T6 medium, {record['rows']} rows of 1,024 tokens a step, "
        "the launch scripts' flags."
    )
    return "\n".join([above, "", *markdown(HEADER, map(_row, record["results"]))])


def _row(r: Record) -> list[str]:
    results = ", ".join(f"{kind} {c['bytes'] / 1e9:.2f}" for kind, c in r["collectives"].items())
    row = [r["layout"], f"{r['tokens_per_second']:,.0f}", "", "", results, "", ""]
    if "of_so_many_times_one" in r:
        row[3] = f"{r['largest_relative_difference_of_losses']:.1e}"
    if r["devices"] > 1:
        row[2] = f"{100 * r['of_so_many_times_one']:.1f} %"
        row[5] = f"{r['milliseconds_by_kind_a_device']['collectives']:.1f}"
        sizes = (sent(kind, c["bytes"], r["devices"]) for kind, c in r["collectives"].items())
        row[6] = f"{1e3 * sum(sizes) / NVLINK:.1f}"
    return row


def progress(record: Record) -> list[str]:
    """What is printed at the end of a run."""
    rows, kinds = [], []
    for r in record["results"]:
        share, difference = (
            r.get(key) for key in ("of_so_many_times_one", "largest_relative_difference_of_losses")
        )
        rows.append(
            [
                r["layout"],
                f"{r['tokens_per_second']:,.0f}",
                "" if share is None else f"{share:.1%}",
                "" if difference is None else f"{difference:.1e}",
                f"{r['compile_seconds']:.1f}",
            ]
        )
        times = r["milliseconds_by_kind_a_device"].items()
        kinds.append(f"{r['layout']}: " + ", ".join(f"{kind} {ms:.1f}" for kind, ms in times))
    header = "layout", "tokens/s", "of n x one GPU's", "difference of losses", "compile s"
    return [
        heading(record),
        "",
        *markdown(header, rows),
        "",
        "ms a step on each GPU by kind of kernel; collectives run next to the others",
        *kinds,
    ]
