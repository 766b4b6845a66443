"""How fast token shards become batches, and how soon the first one comes, for benchmarks.data."""

import functools
import json
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np

from benchmarks.record import ROOT, Record
from t6jax.data.shards import HEADER_INTS, MAGIC
from t6jax.data.tokenizers import GPT2

T = 1024  # tokens of a window


def loading(folder: pathlib.Path, repeats: int) -> Record:
    """How fast batches are read from shards.

    Args:
        folder: The shards.
        repeats: How often each kind of reading is timed, alternating.
    Returns:
        Tokens a second and the main process's CPU seconds a second, by kind of reading; and the
        share of its time that a consumer of a fixed pace waits.
    """
    from t6jax.data.batches import training_batches

    read = functools.partial(
        training_batches, folder, batch_size=32, context_length=T, vocab_size=50304, seed=0
    )
    kinds = {
        "shuffled": {},
        "with_replacement": {"with_replacement": True},
        "2_worker_processes": {"num_workers": 2},
    }
    taken = {name: read(**options) for name, options in kinds.items()}
    for batches in taken.values():
        next(batches)
    rates, cpu = {name: [] for name in kinds}, {name: [] for name in kinds}
    for _ in range(repeats):
        for name, batches in taken.items():
            for _ in range(20):  # what was read ahead while the others were timed
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
        batches = read(batch_size=240)
        next(batches)
        waited, began, steps = 0.0, time.perf_counter(), 20
        for _ in range(steps):
            time.sleep(max(0, 240 * T / pace))
            asked = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - asked
        waits[f"{pace / 1e6:g}M_tokens_per_second"] = waited / (time.perf_counter() - began)
        batches.close()

    def median(values: dict[str, list[float]]) -> dict[str, float]:
        return {name: statistics.median(v) for name, v in values.items()}

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


def startup(scratch: pathlib.Path, repeats: int, shards: int = 1000, tokens: int = 10**8) -> Record:
    """Seconds from the start of a process to its first batch, and its memory.

    The set has 10^11 tokens, in sparse files.
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
