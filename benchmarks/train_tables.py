"""The tables and the plot of benchmarks.train's record."""

import pathlib
import statistics

from benchmarks.plots import pyplot
from benchmarks.record import Record
from benchmarks.tables import heading, markdown
from benchmarks.train_cases import CONTEXT, label

MFU = (
    "MFU = tokens/s x (6 x parameters + 12 x layers x heads x head_dim x T/2) / rate of "
    "the matrix product, T tokens a row"
)


def speed(record: Record) -> str:
    """Tokens a second, next to PyTorch's where it was timed."""
    peak, sustained = (
        record[key] / 1e12
        for key in ("matmul_flops_per_second", "sustained_matmul_flops_per_second")
    )
    above = (
        f"{heading(record)}; the matrix product ran at {peak:.0f} TFLOP/s, and at {sustained:.0f} "
        "when repeated for seconds."
    )
    rows = []
    for r in record["results"]:
        torch = record["torch"].get(r["name"])
        rows.append(
            [
                r["name"],
                r["rows"],
                f"{r['tokens_per_second']:,.0f}",
                f"{torch['tokens_per_second']:,.0f}" if torch else "",
                f"{statistics.median(r['step_milliseconds']):.1f}",
                f"{r['flops_per_second'] / 1e12:.0f}",
                f"{100 * r['flops_per_second'] / record['matmul_flops_per_second']:.0f} %",
                f"{r['peak_bytes'] / 2**30:.1f}",
                f"{r['compile_seconds']:.0f}",
            ]
        )
    header = (
        f"{CONTEXT:,} tokens a row",
        "rows",
        "tokens/s",
        "PyTorch's",
        "ms a step",
        "TFLOP/s",
        "MFU",
        "peak GiB",
        "compile s",
    )
    return "\n".join([above, "", *markdown(header, rows)])


def kinds(record: Record) -> str:
    """Milliseconds of a step by kind of kernel, from the profiler."""
    named = list(
        dict.fromkeys(kind for r in record["results"] for kind in r["milliseconds_by_kind"])
    )
    rows = [
        [r["name"], *(f"{r['milliseconds_by_kind'].get(kind, 0):.1f}" for kind in named)]
        for r in record["results"]
    ]
    return "\n".join(markdown(("ms a step", *named), rows))


def draw(record: Record, out: pathlib.Path) -> pathlib.Path:
    """Draws where each case's time goes: microseconds a token, by kind of kernel."""
    plt = pyplot()
    results = record["results"]
    per_token = [
        {kind: 1e3 * ms / (r["rows"] * CONTEXT) for kind, ms in r["milliseconds_by_kind"].items()}
        for r in results
    ]

    def total(kind: str) -> float:
        return sum(times.get(kind, 0) for times in per_token)

    figure, axes = plt.subplots(figsize=(9, 0.6 * len(results) + 1.8))
    left = [0.0] * len(results)
    for kind in sorted({kind for times in per_token for kind in times}, key=total, reverse=True):
        widths = [times.get(kind, 0) for times in per_token]
        axes.barh([label(r["name"]) for r in results], widths, left=left, label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("us a token: forward, backward and AdamW")
    axes.set_title(
        f"Training step, {CONTEXT:,} tokens a row, heads of D = 64. "
        f"{record['device']}, {record['date']}",
        fontsize=10,
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    path = out / "train_kernels.png"
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return path
