"""The index of benchmarks/results, a page generated from the records there."""

from benchmarks.record import RESULTS, Record, read
from benchmarks.tables import markdown

# what each record is, by its file's name without .json
RECORDS = {
    "attention_nvidia_h200": "causal attention of t6jax, cuDNN and JAX's Mosaic GPU kernel",
    "attention_teams_nvidia_h200": "the same after heads were shared beyond 1,024 tokens",
    "attention_tokamax_nvidia_h200": "causal attention of cuDNN, JAX and tokamax",
    "data_cpu-2-cores": "preparing and loading data on 2 CPU cores",
    "data_nvidia_h200": "preparing and loading data, and training's waits for it, on a GPU host",
    "decode_nvidia_h200": "FlashTPA, XLA, FlashAttention-3 and FlashMLA decoding one token",
    "decode_quick_before_nvidia_h200": "fewer decode cases, before packages were rearranged",
    "decode_quick_nvidia_h200": "the same after it, on the same card in the same minutes",
    "evaluation_nvidia_h200": "requests scored a second by t6jax and by a Hugging Face Llama",
    "scaling_nvidia_h100_80gb_hbm3": "T6 medium's training step on one GPU and on two",
    "scaling_sequence_by_masks_nvidia_h100_80gb_hbm3": "the same before attention ran in chunks",
    "train_nvidia_h200": "the training step, and PyTorch's",
    "train_nvidia_h100_80gb_hbm3": "the training step, and PyTorch's, on a card of 80 GB",
    "train_cudnn_forward_nvidia_h200": "the step with t6jax's attention gradient only",
    "train_cudnn_gradient_nvidia_h200": "the step with cuDNN's attention only",
}
PLOTS = {
    "decode_figure_5.png": ("the paper's Figure 5 (d_model 2048, H = 32)", "decode_nvidia_h200"),
    "decode_figure_7.png": ("the paper's Figure 7 (d_model 3072, H = 48)", "decode_nvidia_h200"),
    "decode_figure_8.png": ("the paper's Figure 8 (d_model 1024, H = 16)", "decode_nvidia_h200"),
    "decode_roofline.png": ("decoding's bytes a second by cache size", "decode_nvidia_h200"),
    "train_kernels.png": ("the step's time by kind of kernel", "train_nvidia_h200"),
}
ABOVE = """# Recorded results

`python -m benchmarks.report` generates this page. Each record is the output of one run and also
holds the versions of the driver, JAX and what else was used.
"""


def page() -> str:
    """The index: every record with its device, date, commit and command, and every plot."""
    records = {path.stem: read(path.name) for path in sorted(RESULTS.glob("*.json"))}
    missing = sorted(set(records) ^ set(RECORDS))
    if missing:
        raise SystemExit(f"benchmarks/results_index.py and the records differ: {missing}")
    rows = [_row(name, record) for name, record in records.items()]
    plots = [
        [f"[{name}]({name})", what, f"[{source}.json]({source}.json)"]
        for name, (what, source) in PLOTS.items()
    ]
    lines = [
        *markdown(("record", "what it is", "device", "date", "commit", "command"), rows),
        "",
        *markdown(("plot", "what it shows", "drawn from"), plots),
    ]
    return ABOVE + "\n" + "\n".join(lines) + "\n"


def _row(name: str, record: Record) -> list[str]:
    commit = f"`{record['commit'][:7]}`" if record["commit"] else "not recorded"
    return [
        f"[{name}.json]({name}.json)",
        RECORDS[name],
        record["device"],
        record["date"],
        commit,
        f"`{record['command']}`",
    ]
