"""The plots of benchmarks.decode's record: the paper's Figures 5, 7 and 8, and a roofline."""

import pathlib
from collections.abc import Iterable

from benchmarks.decode_tables import rate, timed
from benchmarks.plots import pyplot
from benchmarks.record import Record

# the paper's figure: (heads, d_model)
FIGURES = {5: (32, 2048), 7: (48, 3072), 8: (16, 1024)}
# (name, implementation): (label, colour, marker); the names as they are in records
KINDS = {
    ("TPA 16,1,1", "mosaic_gpu"): ("FlashTPA (t6jax, Mosaic GPU)", "#0057e7", "o"),
    ("TPA 16,1,1", "triton"): ("FlashTPA (t6jax, Triton)", "#64b5f6", "o"),
    ("TPA 16,1,1", "xla"): ("TPA, Algorithm 1 (XLA)", "#7f7f7f", "o"),
    ("TPA 16,1,1", "published Triton"): ("FlashTPA (authors' Triton)", "#00a8a8", "D"),
    ("FlashAttention-3 MHA", "FlashAttention-3"): ("MHA (FlashAttention-3)", "#ff7f0e", "s"),
    ("FlashAttention-3 GQA-4", "FlashAttention-3"): ("GQA-4 (FlashAttention-3)", "#d62728", "s"),
    ("FlashAttention-3 MQA", "FlashAttention-3"): ("MQA (FlashAttention-3)", "#2ca02c", "s"),
    ("FlashMLA", "FlashMLA"): ("MLA (FlashMLA)", "#9467bd", "^"),
    ("T6 small", "mosaic_gpu"): ("T6 small, H = 34 (t6jax)", "#1a237e", "P"),
    ("T6 medium", "mosaic_gpu"): ("T6 medium, H = 47 (t6jax)", "#5c6bc0", "P"),
    ("T6 large", "mosaic_gpu"): ("T6 large, H = 61 (t6jax)", "#9fa8da", "P"),
    ("T6 XL", "mosaic_gpu"): ("T6 XL, H = 78 (t6jax)", "#000000", "P"),
    ("T6 XL", "published Triton"): ("T6 XL (authors' Triton)", "#e377c2", "X"),
    ("T6 XL", "published Triton, no copy"): ("T6 XL (authors', no copy)", "#8c564b", "X"),
}


def draw(record: Record, out: pathlib.Path) -> list[pathlib.Path]:
    """Draws every plot that the record has data for.

    Returns:
        The files, PNG.
    """
    drawn = []
    for figure, (heads, d_model) in FIGURES.items():
        points = [r for r in timed(record) if r["heads"] == heads and _kind(r) in KINDS]
        if any(r["name"] == "TPA 16,1,1" for r in points):
            path = out / f"decode_figure_{figure}.png"
            title = f"Decoding as in the paper's Figure {figure}: d_model = {d_model}, H = {heads}"
            _figure(points, f"{title}, D = 64. {record['device']}, {record['date']}", path)
            drawn.append(path)
    drawn.append(_roofline(record, out / "decode_roofline.png"))
    return drawn


def _figure(points: list[Record], title: str, path: pathlib.Path) -> None:
    """Microseconds by cached tokens, a panel for each batch."""
    plt = pyplot()
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    kinds = _in_order(points)
    batches = sorted({r["batch"] for r in points})
    figure, axes = plt.subplots(
        1, len(batches), figsize=(3.4 * len(batches), 4.6), sharey=True, squeeze=False
    )
    for axis, batch in zip(axes[0], batches, strict=True):
        missing = []
        for kind in kinds:
            label, colour, marker = KINDS[kind]
            here = [r for r in points if _kind(r) == kind and r["batch"] == batch]
            x, y = ([r[key] for r in here] for key in ("length", "microseconds"))
            axis.plot(x, y, marker=marker, color=colour, label=label, markersize=4)
            if not here:
                missing.append(label)
        if missing:
            text = "not timed here:\n" + "\n".join(missing)
            at = {"transform": axis.transAxes, "va": "top"}
            axis.text(0.03, 0.97, text, fontsize=8, color="#555555", **at)
        axis.set(title=f"batch {batch}", xlabel="cached tokens of a sequence")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks([2**12, 2**14, 2**16, 2**18], ["4k", "16k", "64k", "256k"])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(_plain))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("us for one new token of each sequence")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.suptitle(title)
    rows = -(-len(kinds) // 4)
    figure.legend(handles, labels, loc="lower center", ncols=min(4, len(kinds)), fontsize=9)
    figure.tight_layout(rect=(0, 0.02 + 0.05 * rows, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _roofline(record: Record, path: pathlib.Path) -> pathlib.Path:
    """Bytes a second by the size of the cache, against the read bandwidth of the same run."""
    plt = pyplot()
    from matplotlib.ticker import FuncFormatter, NullLocator

    points = [r for r in timed(record) if _kind(r) in KINDS]
    figure, axis = plt.subplots(figsize=(10, 5.5))
    for kind in _in_order(points):
        label, colour, marker = KINDS[kind]
        here = [r for r in points if _kind(r) == kind]
        sizes, rates = [r["useful_bytes"] / 2**20 for r in here], [rate(r) / 1e12 for r in here]
        axis.plot(sizes, rates, marker, color=colour, label=label, markersize=4)
    bandwidth = record["read_bytes_per_second"] / 1e12
    axis.axhline(bandwidth, color="black", linestyle=":", label="reading memory, measured")
    heads = ", ".join(map(str, sorted({r["heads"] for r in points if r["name"] == "TPA 16,1,1"})))
    title = f"Decoding: share of memory bandwidth. TPA R = 16, 1, 1 with H = {heads}, D = 64"
    axis.set(xlabel="MiB of cache read", ylabel="TB/s")
    axis.set_title(f"{title}\n{record['device']}, {record['date']}", fontsize=11)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(FuncFormatter(_plain))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _kind(result: Record) -> tuple[str, str]:
    return result["name"], result["implementation"]


def _in_order(points: Iterable[Record]) -> list[tuple[str, str]]:
    """The kinds of the points, in the order of KINDS."""
    found = {_kind(r) for r in points}
    return [kind for kind in KINDS if kind in found]


def _plain(value: float, _: object) -> str:
    return f"{value:,.10g}"
