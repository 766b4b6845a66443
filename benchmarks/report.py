"""Writes the tables of measured times in the README and the docs from the recorded results.

python -m benchmarks.report
"""

import json
import pathlib
import re
from collections.abc import Callable, Iterable

from benchmarks import attention, train
from benchmarks.layouts import NVLINK, sent

ROOT = pathlib.Path(__file__).parent.parent
RECORDED = ROOT / "benchmarks" / "results"
PEERS = ("FlashAttention-3 MHA", "FlashAttention-3 GQA-4", "FlashAttention-3 MQA", "FlashMLA")


def decode_table(record: dict) -> str:
    """Microseconds of one new token for B sequences, beside the peers; and the trained models'
    shapes.
    """
    times = {
        (r["name"], r["implementation"], r["heads"], r["batch"], r["length"]): r
        for r in record["results"]
    }
    tpa = lambda name, heads, batch, length: times[name, "mosaic_gpu", heads, batch, length]
    rate = lambda r: r["useful_bytes"] / r["microseconds"] * 1e6
    bandwidth = record["read_bytes_per_second"]
    lines = [
        f"{record['device']}, {record['date']}, JAX {record['jax']}; "
        f"reading memory ran at {bandwidth / 1e12:.2f} TB/s in the same run.",
        "",
        "| B, cached tokens | **FlashTPA** R = 16, 1, 1 | its TB/s | plain XLA | FA3 MHA | FA3 "
        "GQA-4 | FA3 MQA | FlashMLA |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for batch in (1, 16):
        for power in (12, 14, 17, 19):
            ours = tpa("TPA 16,1,1", 32, batch, 2**power)
            others = [("TPA 16,1,1", "xla"), *((peer, "peer") for peer in PEERS)]
            cells = [times.get((name, kind, 32, batch, 2**power)) for name, kind in others]
            shown = [f"{c['microseconds']:.1f}" if c else "-" for c in cells]
            line = [
                f"{batch}, 2^{power}",
                f"**{ours['microseconds']:.1f}**",
                f"{rate(ours) / 1e12:.2f}",
                *shown,
            ]
            lines.append("| " + " | ".join(line) + " |")
    lines += [
        "",
        "| trained models, R = 6, 2, 2, 2^17 tokens | B = 1 | of read bandwidth | B = 16 | of read "
        "bandwidth |",
        "|---|---|---|---|---|",
    ]
    for size, heads in (("small", 34), ("medium", 47), ("large", 61), ("XL", 78)):
        both = [tpa(f"T6 {size}", heads, batch, 2**17) for batch in (1, 16)]
        cells = [
            cell
            for r in both
            for cell in (f"{r['microseconds']:.1f}", f"{100 * rate(r) / bandwidth:.0f} %")
        ]
        lines.append("| " + " | ".join([f"{size}, H = {heads}", *cells]) + " |")
    return "\n".join(lines)


def decode_cases_table(record: dict) -> str:
    """What is measured beside the README's grid, and the Triton kernel's times."""
    bandwidth = record["read_bytes_per_second"]
    lines = [
        f"{record['device']}, {record['date']}, JAX {record['jax']}; "
        f"reading memory ran at {bandwidth / 1e12:.2f} TB/s in the same run.",
        "",
        "| case | us | of read bandwidth |",
        "|---|---|---|",
    ]
    for case in record["cases"]:
        share = case["useful_bytes"] / case["microseconds"] * 1e6 / bandwidth
        shown = (
            f"{100 * share:.0f} %" if case["group"] in ("ragged", "new_tokens", "variants") else "-"
        )
        lines.append(f"| {case['case']} | {case['microseconds']:.1f} | {shown} |")
    for r in record["results"]:
        if r["implementation"] == "triton" and r["length"] in (2**12, 2**14, 2**17):
            share = r["useful_bytes"] / r["microseconds"] * 1e6 / bandwidth
            what = (
                f"Triton, R = 16, 1, 1, H = {r['heads']}: B = {r['batch']}, "
                f"2^{r['length'].bit_length() - 1} tokens"
            )
            lines.append(f"| {what} | {r['microseconds']:.1f} | {100 * share:.0f} % |")
    return "\n".join(lines)


def evaluation_table(record: dict) -> str:
    """Requests scored a second, beside the harness's Hugging Face model."""
    ours, theirs = record["ours"], record["theirs"]
    compiling = ours["seconds"]["warm_up"] - ours["seconds"]["warm"]
    earlier = record["earlier_run"]
    lines = [
        f"{record['device']}, {record['date']}: {record['request']}, {ours['documents']:,} "
        "documents, the peer "
        f"{theirs['documents']:,}, bfloat16, warm; compiling took {compiling:.0f} s more. The "
        "peer's search for a batch size and "
        f"its start count: in an earlier run, with {earlier['theirs']['documents']:,} documents, "
        "it had "
        f"{earlier['theirs']['requests_per_second']:,.0f}, ours then "
        f"{earlier['ours']['requests_per_second']:,.0f}.",
        "",
        "| | parameters | requests a second |",
        "|---|---|---|",
    ]
    for name, r in (
        ("**T6 XL, TPA**", ours),
        ("Llama, lm-evaluation-harness's `hf`, batch size auto", theirs),
    ):
        lines.append(
            f"| {name} | {r['parameters'] / 1e9:.2f} B | {r['requests_per_second']:,.0f} |"
        )
    return "\n".join(lines)


def scaling_table(record: dict) -> str:
    """Tokens a second over two GPUs, beside one, and the collectives' time beside what their bytes
    take at the links' rate.
    """
    lines = [
        f"{record['device']}, {record['date']}, JAX {record['jax']}: T6 medium, {record['rows']} "
        "rows of 1,024 tokens a step, "
        "the launch scripts' flags.",
        "",
        "| mesh | tokens/s | of twice one GPU's | largest difference of losses | GB of results a "
        "step, by collective "
        "| ms of collectives a step on each GPU | at the links' rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in record["results"]:
        two = r["devices"] > 1
        share = f"{100 * r['of_so_many_times_one']:.1f} %" if two else ""
        difference = (
            f"{r['largest_relative_difference_of_losses']:.1e}"
            if "of_so_many_times_one" in r
            else ""
        )
        results = ", ".join(
            f"{kind} {c['bytes'] / 1e9:.2f}" for kind, c in r["collectives"].items()
        )
        took = f"{r['milliseconds_by_kind_a_device']['collectives']:.1f}" if two else ""
        seconds = (
            sum(sent(kind, c["bytes"], r["devices"]) for kind, c in r["collectives"].items())
            / NVLINK
        )
        least = f"{1e3 * seconds:.1f}" if two else ""
        lines.append(
            f"| {r['layout']} | {r['tokens_per_second']:,.0f} | {share} | {difference} | {results} "
            f"| {took} | {least} |"
        )
    return "\n".join(lines)


def joined(lines: Callable[[dict], Iterable[str]]) -> Callable[[dict], str]:
    return lambda record: "\n".join(lines(record))


def attention_of(kept: Callable[[dict], bool]) -> Callable[[dict], str]:
    """Those of a run's results that are to be shown."""
    return lambda record: "\n".join(
        attention.table(record | {"results": [r for r in record["results"] if kept(r)]})
    )


def beside_tokamax(result: dict) -> bool:
    """The one shape that tokamax was timed on, in a run from before there was a kernel of ours for
    the forward pass.
    """
    return result["shape"] == "T6 XL" and result["name"] != attention.OURS[0]


def shared_heads(result: dict) -> bool:
    """What several multiprocessors shared in that run, beside cuDNN."""
    return attention.SHAPES[result["shape"]][1] >= 1024 and result["name"] in attention.OURS


DECODE, EVALUATION, TRAIN = (
    f"{name}_nvidia_h200.json" for name in ("decode", "evaluation", "train")
)
H100 = "train_nvidia_h100_80gb_hbm3.json"
CUDNN = (
    "train_cudnn_gradient_nvidia_h200.json"  # before there was a kernel for attention's gradient
)
TABLES = {
    "decode": (decode_table, DECODE),
    "decode cases": (decode_cases_table, DECODE),
    "evaluation": (evaluation_table, EVALUATION),
    "train": (joined(train.table), TRAIN),
    "train kernels": (joined(train.kinds_table), TRAIN),
    "train, H100": (joined(train.table), H100),
    "train kernels, H100": (joined(train.kinds_table), H100),
    "train, cuDNN's gradient": (joined(train.table), CUDNN),
    "train kernels, cuDNN's gradient": (joined(train.kinds_table), CUDNN),
    "scaling": (scaling_table, "scaling_nvidia_h100_80gb_hbm3.json"),
    "attention": (joined(attention.table), "attention_nvidia_h200.json"),
    "attention, shared heads": (attention_of(shared_heads), "attention_teams_nvidia_h200.json"),
    "attention, beside tokamax": (
        attention_of(beside_tokamax),
        "attention_beside_tokamax_nvidia_h200.json",
    ),
}
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def with_tables(text: str) -> str:
    """A text with its tables as the recorded results have them."""
    for name, (table, file) in TABLES.items():
        begin, end = f"<!-- benchmarks.report: {name} -->\n", "<!-- end -->"
        if begin not in text:
            continue
        record = json.loads((RECORDED / file).read_text())
        inside = begin + table(record) + "\n" + end
        text = re.sub(
            re.escape(begin) + ".*?" + end, lambda _, inside=inside: inside, text, flags=re.S
        )
    return text


if __name__ == "__main__":
    for path in FILES:
        path.write_text(with_tables(path.read_text()))
