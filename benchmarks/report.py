"""Writes the README's tables of measured times from the recorded results. usage: python -m benchmarks.report"""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
RECORDED = ROOT / "benchmarks" / "results"
PEERS = ("FlashAttention-3 MHA", "FlashAttention-3 GQA-4", "FlashAttention-3 MQA", "FlashMLA")


def decode_table(record: dict) -> str:
    """Microseconds of one new token for B sequences, beside the peers; and the trained models' shapes."""
    times = {(r["name"], r["implementation"], r["heads"], r["batch"], r["length"]): r for r in record["results"]}
    tpa = lambda name, heads, batch, length: times[name, "mosaic_gpu", heads, batch, length]
    rate = lambda r: r["useful_bytes"] / r["microseconds"] * 1e6
    bandwidth = record["read_bytes_per_second"]
    lines = [
        f"{record['device']}, {record['date']}, JAX {record['jax']}; "
        f"reading memory ran at {bandwidth / 1e12:.2f} TB/s in the same run.",
        "",
        "| B, cached tokens | **FlashTPA** R = 16, 1, 1 | its TB/s | plain XLA | FA3 MHA | FA3 GQA-4 | FA3 MQA | FlashMLA |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for batch in (1, 16):
        for power in (12, 14, 17, 19):
            ours = tpa("TPA 16,1,1", 32, batch, 2**power)
            others = [("TPA 16,1,1", "xla"), *((peer, "peer") for peer in PEERS)]
            cells = [times.get((name, kind, 32, batch, 2**power)) for name, kind in others]
            shown = [f"{c['microseconds']:.1f}" if c else "-" for c in cells]
            line = [f"{batch}, 2^{power}", f"**{ours['microseconds']:.1f}**", f"{rate(ours) / 1e12:.2f}", *shown]
            lines.append("| " + " | ".join(line) + " |")
    lines += [
        "",
        "| trained models, R = 6, 2, 2, 2^17 tokens | B = 1 | of read bandwidth | B = 16 | of read bandwidth |",
        "|---|---|---|---|---|",
    ]
    for size, heads in (("small", 34), ("medium", 47), ("large", 61), ("XL", 78)):
        both = [tpa(f"T6 {size}", heads, batch, 2**17) for batch in (1, 16)]
        cells = [cell for r in both for cell in (f"{r['microseconds']:.1f}", f"{100 * rate(r) / bandwidth:.0f} %")]
        lines.append("| " + " | ".join([f"{size}, H = {heads}", *cells]) + " |")
    return "\n".join(lines)


def evaluation_table(record: dict) -> str:
    """Requests scored a second, beside the harness's Hugging Face model."""
    ours, theirs = record["ours"], record["theirs"]
    compiling = ours["seconds"]["warm_up"] - ours["seconds"]["warm"]
    lines = [
        f"{record['device']}, {record['date']}: {record['request']}, {ours['documents']:,} documents (the peer "
        f"{theirs['documents']:,}), bfloat16, warm; compiling took another {compiling:.0f} s.",
        "",
        "| | parameters | requests a second |",
        "|---|---|---|",
    ]
    for name, r in (("**T6 XL, TPA**", ours), ("Llama, lm-evaluation-harness's `hf`, batch size auto", theirs)):
        lines.append(f"| {name} | {r['parameters'] / 1e9:.2f} B | {r['requests_per_second']:,.0f} |")
    return "\n".join(lines)


TABLES = {
    "decode": (decode_table, "decode_nvidia_h200.json"),
    "evaluation": (evaluation_table, "evaluation_nvidia_h200.json"),
}


def filled(readme: str) -> str:
    """The README with its tables as the recorded results have them."""
    for name, (table, file) in TABLES.items():
        begin, end = f"<!-- benchmarks.report: {name} -->\n", "<!-- end -->"
        text = table(json.loads((RECORDED / file).read_text()))
        readme = re.sub(re.escape(begin) + ".*?" + end, lambda _, new=begin + text + "\n" + end: new, readme, flags=re.S)
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text()))
