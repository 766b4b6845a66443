"""How fast text becomes token shards, for benchmarks.data."""

import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import sysconfig
import time
from multiprocessing.synchronize import Barrier

import tiktoken

from benchmarks.record import ROOT, Record
from t6jax.data.documents import documents
from t6jax.data.tokenizers import TiktokenTokenizer, get_tokenizer

CORES = len(os.sched_getaffinity(0))


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


_encoding: tiktoken.Encoding  # of a process of the pool
_barrier: Barrier


def _encoding_of(ranks: str) -> tiktoken.Encoding:
    tokenizer = get_tokenizer(ranks)
    assert isinstance(tokenizer, TiktokenTokenizer), f"{ranks} are no ranks of tiktoken"
    return tokenizer._encoding


def _load(ranks: str, barrier: Barrier) -> None:
    global _encoding, _barrier
    _encoding, _barrier = _encoding_of(ranks), barrier


def _encode(share: list[str]) -> float:
    """Seconds of tokenizing in one process, all of which start together."""
    _barrier.wait()
    began = time.perf_counter()
    for text in share:
        _encoding.encode_ordinary(text)
    return time.perf_counter() - began


def tokenizing(found: list[str], ranks: str, repeats: int, scratch: pathlib.Path) -> Record:
    """Megabytes a second of the whole of prepare, and of tiktoken on text in memory.

    Args:
        found: The texts.
        ranks: The tokenizer: "gpt2" or a .tiktoken file.
        repeats: How often each is timed, alternating.
        scratch: A folder for the text and the shards.
    Returns:
        What the record holds of tokenizing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": found}), scratch / "source.parquet", row_group_size=200)
    size = sum(len(t.encode()) for t in found)
    encoding = _encoding_of(ranks)
    spawn = multiprocessing.get_context("spawn")
    seconds = {"prepare": [], "tiktoken_threads": [], "tiktoken_processes": []}
    with spawn.Pool(CORES, _load, (ranks, spawn.Barrier(CORES))) as pool:
        for repeat in range(repeats):
            out = scratch / f"shards-{repeat}"
            flags = [
                f"--source={scratch / 'source.parquet'}",
                f"--out={out}",
                f"--tokenizer={ranks}",
                f"--workers={CORES}",
                "--unit_bytes=4000000",  # as many units for each core as a large set has
            ]
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
            # each process takes every n-th document; they start together and the slowest counts
            seconds["tiktoken_processes"].append(
                max(pool.map(_encode, [found[i::CORES] for i in range(CORES)], 1))
            )
    rates = {name: [size / s / 1e6 for s in taken] for name, taken in seconds.items()}

    def ratio(other: str) -> float:
        pairs = zip(rates["prepare"], rates[other], strict=True)
        return statistics.median(a / b for a, b in pairs)

    return {
        "cores": CORES,
        "megabytes": size / 1e6,
        "documents": len(found),
        "megabytes_per_second": {name: statistics.median(taken) for name, taken in rates.items()},
        "all_megabytes_per_second": rates,
        "prepare_over_tiktoken_threads": ratio("tiktoken_threads"),
        "prepare_over_tiktoken_processes": ratio("tiktoken_processes"),
    }
