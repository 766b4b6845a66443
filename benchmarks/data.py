"""How fast text becomes shards and shards become batches, and how long training waits for them.

    python -m benchmarks.data [--ranks=FILE.tiktoken] [--megabytes=240] [--repeats=5]
    [--out=benchmarks/results]

Writes data_<device>.json and prints it. The text is Python code and documentation found on this
machine. What is compared is measured in turns in one run, so that other work on the machine meets
both; medians are reported. Starting processes counts for preparing, and not for the tokenizer
alone: with little text for each core (--megabytes) it is most of the difference.
"""

import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time

import numpy as np

from benchmarks.record import ROOT, nvidia_smi, parser, provenance, write
from t6jax.data.documents import documents
from t6jax.data.prepare import prepare
from t6jax.data.shards import HEADER_INTS, MAGIC
from t6jax.data.tokenizers import GPT2, TiktokenTokenizer, get_tokenizer

CORES = len(os.sched_getaffinity(0))
T = 1024
COPIES = 4  # of the text, which is not enough otherwise


def texts(megabytes: float) -> list[str]:
    """Python's documentation and sources, then those of installed packages, up to the size."""
    found, size = [], 0
    packages = sorted(pathlib.Path(sysconfig.get_path("purelib")).rglob("*.py"))
    reads = [*(d.read for d in documents("python")), *(p.read_bytes for p in packages)]
    for read in reads:
        text = read().decode("utf-8", "replace")
        if text:
            found.append(text)
            size += len(text)
        if size > megabytes * 1e6:
            break
    return found


_tokenizer: TiktokenTokenizer


def _load(ranks: str, barrier) -> None:
    global _tokenizer, _barrier
    _tokenizer, _barrier = get_tokenizer(ranks), barrier


def _encode(share: list[str]) -> float:
    _barrier.wait()
    began = time.perf_counter()
    for text in share:
        _tokenizer._encoding.encode_ordinary(text)
    return time.perf_counter() - began


def tokenizing(found: list[str], ranks: str, repeats: int, scratch: pathlib.Path) -> dict:
    """Text a second of the whole of prepare, process start and all, beside tiktoken's on text that
    is in memory.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": found}), scratch / "source.parquet", row_group_size=200)
    size = sum(len(t.encode()) for t in found)
    encoding = get_tokenizer(ranks)._encoding
    spawn = multiprocessing.get_context("spawn")
    seconds = {"prepare": [], "tiktoken_threads": [], "tiktoken_processes": []}
    with spawn.Pool(CORES, _load, (ranks, spawn.Barrier(CORES))) as pool:
        for turn in range(repeats):
            out = scratch / f"shards-{turn}"
            flags = [
                f"--source={scratch / 'source.parquet'}",
                f"--out={out}",
                f"--tokenizer={ranks}",
                f"--workers={CORES}",
            ]
            flags.append("--unit_bytes=4000000")  # as many units for each core as a large set has
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "t6jax.data.prepare", *flags],
                cwd=ROOT,
                check=True,
                capture_output=True,
            )
            seconds["prepare"].append(time.perf_counter() - began)
            began = time.perf_counter()
            encoding.encode_ordinary_batch(found, num_threads=CORES)
            seconds["tiktoken_threads"].append(time.perf_counter() - began)
            # every n-th document to each process, begun together: the last to end counts
            seconds["tiktoken_processes"].append(
                max(pool.map(_encode, [found[i::CORES] for i in range(CORES)], 1))
            )
    rates = {name: [size / s / 1e6 for s in taken] for name, taken in seconds.items()}
    ratio = lambda other: statistics.median(
        a / b for a, b in zip(rates["prepare"], rates[other], strict=True)
    )
    return {
        "cores": CORES,
        "megabytes": size / 1e6,
        "documents": len(found),
        "megabytes_per_second": {name: statistics.median(taken) for name, taken in rates.items()},
        "all_megabytes_per_second": rates,
        "prepare_over_tiktoken_threads": ratio("tiktoken_threads"),
        "prepare_over_tiktoken_processes": ratio("tiktoken_processes"),
    }


def loading(folder: pathlib.Path, repeats: int) -> dict:
    """Tokens a second out of one process, and its CPU seconds a second; and the waits of a consumer
    of a fixed pace.
    """
    from t6jax.data.batches import training_batches

    windows = {"batch_size": 32, "context_length": T, "vocab_size": 50304, "seed": 0}
    kinds = {
        "shuffled": {},
        "with_replacement": {"with_replacement": True},
        "2_worker_processes": {"num_workers": 2},
    }
    taken = {
        name: training_batches(folder, **windows, **options) for name, options in kinds.items()
    }
    for batches in taken.values():
        next(batches)
    rates, cpu = {name: [] for name in kinds}, {name: [] for name in kinds}
    for _ in range(repeats):
        for name, batches in taken.items():
            for _ in range(20):  # what was read ahead while the others had their turn
                next(batches)
            began, cpu_began, count = time.perf_counter(), time.process_time(), 300
            for _ in range(count):
                next(batches)
            passed = time.perf_counter() - began
            rates[name].append(count * 32 * T / passed / 1e6)
            cpu[name].append((time.process_time() - cpu_began) / passed)
    for batches in taken.values():
        batches.close()
    waits = {}
    for pace in (0.5e6, 1e6, 2e6):
        batches = training_batches(folder, **windows | {"batch_size": 240})
        next(batches)
        waited, began, steps = 0.0, time.perf_counter(), 20
        for _ in range(steps):
            time.sleep(max(0, 240 * T / pace))
            asked = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - asked
        waits[f"{pace / 1e6:g}M_tokens_per_second"] = waited / (time.perf_counter() - began)
        batches.close()
    median = lambda values: {name: statistics.median(v) for name, v in values.items()}
    return {
        "million_tokens_per_second": median(rates),
        "all_million_tokens_per_second": rates,
        "main_process_cpu_seconds_per_second": median(cpu),
        "wait_fraction_of_a_consumer_of": waits,
    }


STARTUP = """
import pathlib, re, sys, time
from t6jax.data.batches import training_batches
from t6jax.data.manifest import check_data
imported = time.time()
folder = pathlib.Path(sys.argv[1])
check_data(folder, "gpt2", 50304)
batch = next(training_batches(folder, batch_size=32, context_length=1024, vocab_size=50304, seed=0))
memory = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]
print(imported, time.time(), memory)
"""


def startup(scratch: pathlib.Path, repeats: int, shards: int = 1000, tokens: int = 10**8) -> dict:
    """Seconds from the start of a process to its first batch of a set of 10^11 tokens, in sparse
    files, and its memory.
    """
    folder = scratch / "sparse"
    folder.mkdir()
    header = np.zeros(HEADER_INTS, "<i4")
    header[:3] = MAGIC, 1, tokens
    listed = {"val": [], "train": []}
    for i in range(shards):
        split = "train" if i else "val"
        path = folder / f"{split}_{i:06d}.bin"
        with path.open("wb") as f:
            f.write(header.tobytes())
            f.truncate(1024 + 2 * tokens)
        listed[split].append({"file": path.name, "tokens": tokens})
    splits = {
        split: {"documents": 0, "bytes": 0, "tokens": tokens * len(s), "shards": s}
        for split, s in listed.items()
    }
    manifest = {"tokenizer": GPT2, "vocab_size": 50257, "document_start": 50256, **splits}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    results = []
    for _ in range(repeats):
        began = time.time()
        run = [sys.executable, "-c", STARTUP, str(folder)]
        done = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True)
        imported, ended, memory = (float(x) for x in done.stdout.split())
        results.append((ended - began, ended - imported, memory * 1024 / 1e6))
    names = ("seconds_to_first_batch", "of_them_after_imports", "peak_resident_megabytes")
    return {"shards": shards, "tokens": shards * tokens} | {
        name: statistics.median(r[i] for r in results) for i, name in enumerate(names)
    }


TRAINING = """
import json, sys
from configs import common, quickstart
from t6jax.training.loop import train
import jax
config = common.get_config() if jax.default_backend() == "gpu" else quickstart.get_config()
config.update(steps=200)
if jax.default_backend() == "gpu":
    config.batch_size = 32
    config.data.update(path=sys.argv[1], tokenizer=sys.argv[3])
config.validation.every_steps = config.checkpoint.every_steps = 10**6
config.log.update(every_steps=10, tensorboard=False)
train(config.to_dict(), sys.argv[2])
"""


def training(folder: pathlib.Path, ranks: str, scratch: pathlib.Path) -> dict:
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
