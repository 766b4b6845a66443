"""The tables of benchmarks.decode's record."""

from collections.abc import Iterable

from benchmarks.record import Record
from benchmarks.tables import heading, markdown

PUBLISHED = "published Triton", "published Triton, no copy"
# what the README's table shows next to FlashTPA: (column, name, implementation)
OTHERS = (
    ("plain XLA", "TPA 16,1,1", "xla"),
    ("authors' Triton", "TPA 16,1,1", PUBLISHED[0]),
    ("FA3 MHA", "FlashAttention-3 MHA", "FlashAttention-3"),
    ("FA3 GQA-4", "FlashAttention-3 GQA-4", "FlashAttention-3"),
    ("FA3 MQA", "FlashAttention-3 MQA", "FlashAttention-3"),
    ("FlashMLA", "FlashMLA", "FlashMLA"),
)


def timed(record: Record) -> list[Record]:
    """The cases that ran."""
    return [r for r in record["results"] if "microseconds" in r]


def rate(result: Record) -> float:
    """Bytes of factors, keys or values, without padding, that were read a second."""
    return result["useful_bytes"] / result["microseconds"] * 1e6


def share(result: Record, record: Record) -> str:
    """The rate as a share of the read bandwidth that the same run measured."""
    return f"{100 * rate(result) / record['read_bytes_per_second']:.0f} %"


def compared(record: Record) -> str:
    """Microseconds of one new token for B sequences by each kernel, then the trained models."""
    times = _by_case(timed(record))
    others = [o for o in OTHERS if any(key[:2] == o[1:] for key in times)]
    rows = []
    for batch in (1, 16):
        for power in (12, 14, 17, 19):
            ours = times["TPA 16,1,1", "mosaic_gpu", 32, batch, 2**power]
            cells = [times.get((name, kind, 32, batch, 2**power)) for _, name, kind in others]
            rows.append(
                [
                    f"{batch}, 2^{power}",
                    f"**{ours['microseconds']:.1f}**",
                    f"{rate(ours) / 1e12:.2f}",
                    *(f"{c['microseconds']:.1f}" if c else "-" for c in cells),
                ]
            )
    columns = ["**FlashTPA** R = 16, 1, 1", "its TB/s", *(column for column, *_ in others)]
    lines = [*_above(record), *markdown(["B, cached tokens", *columns], rows), ""]
    return "\n".join([*lines, *_trained(record, times), *_failures(record)])


def _trained(record: Record, times: dict) -> list[str]:
    """The trained models at 2^17 tokens, with the authors' kernels where they were tried."""
    shown = {r["implementation"] for r in record["results"] if r["name"] == "T6 XL"}
    tried = [p for p in PUBLISHED if p in shown]
    columns = ["of read bandwidth", *(p.replace("published", "authors'") for p in tried)]
    header = ["trained models, R = 6, 2, 2, 2^17 tokens", "B = 1", *columns, "B = 16", *columns]
    rows = []
    for size, heads in (("small", 34), ("medium", 47), ("large", 61), ("XL", 78)):
        row = [f"{size}, H = {heads}"]
        for batch in (1, 16):
            r = times[f"T6 {size}", "mosaic_gpu", heads, batch, 2**17]
            row += [f"{r['microseconds']:.1f}", share(r, record)]
            found = [times.get((f"T6 {size}", p, heads, batch, 2**17)) for p in tried]
            row += [f"{f['microseconds']:.1f}" if f else "-" for f in found]
        rows.append(row)
    return markdown(header, rows)


def _failures(record: Record) -> list[str]:
    """A line for each of the authors' kernels that failed: how often, and the first reason."""
    failed: dict[str, list[Record]] = {}
    for r in record["results"]:
        if "failed" in r and r["implementation"] in PUBLISHED:
            failed.setdefault(r["implementation"], []).append(r)
    lines = []
    for implementation, results in failed.items():
        first = results[0]
        where = f"H = {first['heads']}, B = {first['batch']}, {first['length']:,} tokens"
        count = f"{len(results)} case{'s' if len(results) > 1 else ''}"
        lines += ["", f"{implementation} did not run in {count}; {where}: {first['failed']}"]
    return lines


def cases(record: Record) -> str:
    """What is measured outside the README's grid, and the Triton kernel's times."""
    rows = []
    for case in record["cases"]:
        shown = case["group"] in ("ragged", "new_tokens", "variants")
        rows.append(
            [case["case"], f"{case['microseconds']:.1f}", share(case, record) if shown else "-"]
        )
    for r in timed(record):
        if (
            r["implementation"] == "triton"
            and r["length"] in (2**12, 2**14, 2**17)
            and r["batch"] in (1, 16)
        ):
            what = (
                f"Triton, R = 16, 1, 1, H = {r['heads']}: B = {r['batch']}, "
                f"2^{r['length'].bit_length() - 1} tokens"
            )
            rows.append([what, f"{r['microseconds']:.1f}", share(r, record)])
    return "\n".join([*_above(record), *markdown(["case", "us", "of read bandwidth"], rows)])


def every_result(record: Record) -> Iterable[str]:
    """All of a record's results, for the terminal."""
    rows = []
    for r in record["results"]:
        case = [r["name"], r["heads"], r["batch"], r["length"], r["implementation"]]
        if "failed" in r:
            rows.append([*case, r["failed"], "-", "-"])
        else:
            measured = f"{r['microseconds']:.1f}", f"{rate(r) / 1e12:.2f}", share(r, record)
            rows.append([*case, *measured])
    header = "case", "H", "B", "length", "implementation", "us", "TB/s", "of read bandwidth"
    return [*_above(record), *markdown(header, rows)]


def _by_case(results: list[Record]) -> dict[tuple, Record]:
    keys = "name", "implementation", "heads", "batch", "length"
    return {tuple(r[k] for k in keys): r for r in results}


def _above(record: Record) -> list[str]:
    bandwidth = record["read_bytes_per_second"] / 1e12
    return [f"{heading(record)}; reading memory ran at {bandwidth:.2f} TB/s in the same run.", ""]
