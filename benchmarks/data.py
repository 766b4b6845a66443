"""How fast text becomes shards and shards become batches, and how long training waits for them.

    python -m benchmarks.data [--ranks=FILE.tiktoken] [--megabytes=240] [--repeats=5] [--out=DIR]

Writes data_<device>.json and prints it. The text is Python code and documentation found on this
machine. What is compared alternates within one run, so that other work on the machine affects both;
medians are reported. Starting processes counts for preparing but not for the tokenizer alone: with
little text for each core (--megabytes) it is most of the difference.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

from benchmarks.data_loading import loading, startup
from benchmarks.data_tokenizing import CORES, texts, tokenizing
from benchmarks.record import ROOT, Record, nvidia_smi, parser, provenance, write
from t6jax.data.prepare import prepare
from t6jax.data.tokenizers import GPT2

COPIES = 4  # of the text, to have enough

TRAINING = """
import json, sys
from configs import common, quickstart
from t6jax.config import RunConfig
from t6jax.training.loop import train
import jax
config = common.get_config() if jax.default_backend() == "gpu" else quickstart.get_config()
config.update(steps=200)
if jax.default_backend() == "gpu":
    config.batch_size = 32
    config.optimizer.decay_steps = 100_000
    config.data.update(path=sys.argv[1], tokenizer=sys.argv[3])
config.validation.every_steps = config.checkpoint.every_steps = 10**6
config.log.update(every_steps=10, tensorboard=False)
train(RunConfig.from_dict(config.to_dict()), sys.argv[2])
"""


def training(folder: pathlib.Path, ranks: str, scratch: pathlib.Path) -> Record:
    """The fraction of the time between steps that a training run waits for its data."""
    workdir = scratch / "run"
    subprocess.run(
        [sys.executable, "-c", TRAINING, str(folder), str(workdir), ranks],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "train_loss" in line][1:]  # the first holds the start
    config = json.loads((workdir / "config.json").read_text())
    return {
        "model": {
            key: config["model"][key]
            for key in ("num_layers", "d_model", "context_length", "vocab_size")
        },
        "batch_size": config["batch_size"],
        "steps": lines[-1]["step"],
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in lines),
        "mean_data_wait_fraction": statistics.mean(line["data_wait_fraction"] for line in lines),
        "largest_data_wait_fraction_of_10_steps": max(line["data_wait_fraction"] for line in lines),
    }


def processor() -> str:
    """The CPU's name."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--ranks", default=GPT2, help="gpt2, or a .tiktoken file with its ranks")
    arguments.add_argument(
        "--megabytes",
        type=float,
        default=240,
        help="of text to tokenize, a quarter of it four times",
    )
    arguments.add_argument("--repeats", type=int, default=5)
    args = arguments.parse_args()
    ranks = args.ranks if args.ranks == GPT2 else str(pathlib.Path(args.ranks).resolve())
    device = nvidia_smi("name") or f"cpu-{CORES}-cores"
    libraries = ("tiktoken", "tokenizers", "datatrove", "pyarrow", "grain", "numpy")
    result = provenance("benchmarks.data", device, args.commit) | {
        "processor": processor(),
        "load_average_at_start": os.getloadavg()[0],
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in libraries},
    }
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        found = texts(args.megabytes / COPIES) * COPIES
        result["tokenizing"] = tokenizing(found, ranks, args.repeats, scratch)
        shards = scratch / "loading"
        prepare(
            str(scratch / "source.parquet"),
            shards,
            ranks,
            0.01,
            shard_tokens=4_000_000,
            workers=CORES,
        )
        result["loading"] = loading(shards, args.repeats)
        result["startup"] = startup(scratch, args.repeats)
        result["training"] = training(shards, ranks, scratch)
    result["load_average_at_end"] = os.getloadavg()[0]
    write(args.out, "data", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
