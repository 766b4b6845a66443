"""Compares two records of the same benchmark, case by case.

    python -m benchmarks.compare OLD.json NEW.json [--within 0.01]

Prints a Markdown table of every case that both records hold: the old and the new number, and their
ratio as a speed, so that more than 1 is faster. With --within, exits with 1 where a case is slower
than the old record by more than that share. Takes the records of benchmarks.decode,
benchmarks.train, benchmarks.attention and benchmarks.scaling.
"""

import argparse
import math
import sys
from collections.abc import Iterator

from benchmarks.record import Record, read
from benchmarks.tables import markdown

# keys of a result that name its case, in the order in which they are shown
CASE = ("group", "shape", "name", "layout", "implementation", "heads", "batch", "length", "case")
# keys of a result that hold a measured number: whether less is faster
MEASURED = {
    "microseconds": True,
    "forward_microseconds": True,
    "backward_microseconds": True,
    "tokens_per_second": False,
}


def numbers(record: Record) -> Iterator[tuple[tuple[str, ...], float]]:
    """(case, number) of everything that a record measured."""
    for result in [*record["results"], *record.get("cases", [])]:
        case = tuple(str(result[key]) for key in CASE if key in result)
        for key in MEASURED:
            if key in result:
                yield (*case, key), result[key]


def ratios(old: Record, new: Record) -> dict[tuple[str, ...], tuple[float, float, float]]:
    """(old number, new number, how many times as fast) of every case of both records."""
    before, found = dict(numbers(old)), {}
    for case, after in numbers(new):
        if case in before:
            ratio = after / before[case]
            found[case] = before[case], after, 1 / ratio if MEASURED[case[-1]] else ratio
    return found


def lines(old: Record, new: Record) -> list[str]:
    """The table, what each record is, and the geometric mean of the ratios."""
    found = ratios(old, new)
    rows = [
        [", ".join(case), f"{before:,.1f}", f"{after:,.1f}", f"{ratio:.3f}"]
        for case, (before, after, ratio) in found.items()
    ]
    logs = [math.log(ratio) for *_, ratio in found.values()]
    mean = math.exp(sum(logs) / len(logs)) if logs else math.nan
    only = [len(dict(numbers(r)).keys() - found.keys()) for r in (old, new)]
    return [
        *(
            f"{name}: {record['device']}, {record['date']}, commit {record['commit']}"
            for name, record in (("old", old), ("new", new))
        ),
        "",
        *markdown(("case", "old", "new", "times as fast"), rows),
        "",
        f"geometric mean {mean:.3f} over {len(rows)} numbers; in one record only: {only[0]} old, "
        f"{only[1]} new",
    ]


def slower(old: Record, new: Record, within: float) -> list[str]:
    """The cases that are slower by more than a share of the old speed."""
    found = ratios(old, new).items()
    return [f"{', '.join(case)}: {ratio:.3f}" for case, (*_, ratio) in found if ratio < 1 - within]


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("old", help="a path, or the name of a file of benchmarks/results")
    arguments.add_argument("new", help="the same, of the record to compare with it")
    arguments.add_argument("--within", type=float, metavar="SHARE", help="the slowdown that passes")
    args = arguments.parse_args()
    old, new = read(args.old), read(args.new)
    print("\n".join(lines(old, new)))
    if not ratios(old, new):
        sys.exit("the records have no case in common")
    if args.within is not None and (cases := slower(old, new, args.within)):
        sys.exit("\n".join([f"slower by more than {args.within:.1%}:", *cases]))


if __name__ == "__main__":
    main()
