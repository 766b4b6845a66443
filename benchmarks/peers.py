"""Times FlashAttention-3 and FlashMLA decoding in PyTorch; run by benchmarks.decode in a process of
its own.

    python -m benchmarks.peers DIR LENGTH...

Prints a JSON object a case. Calls go over several caches in turn inside one CUDA graph, whose
replays are timed.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import torch

HEADS, DIM = 32, 64


def load(folder):
    library = folder / "_vllm_fa3_C.abi3.so"
    if not library.exists():
        library = pathlib.Path(tempfile.mkdtemp(), library.name)
        with library.open("wb") as file:
            subprocess.run(["xz", "-dc", folder / f"{library.name}.xz"], stdout=file, check=True)
    torch.ops.load_library(str(library))
    torch.ops.load_library(str(folder / "_flashmla_C.abi3.so"))


def normal(*shape):
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda")


def flash_attention_3(batch, length, kv_heads):
    """One new token against a dense cache: (a call, bytes of cache)."""
    q, k, v = (
        normal(batch, 1, HEADS, DIM),
        normal(batch, length, kv_heads, DIM),
        normal(batch, length, kv_heads, DIM),
    )
    used = torch.full((batch,), length, dtype=torch.int32, device="cuda")
    before, after = [None] * 8, [None] * 11
    tail = (DIM**-0.5, True, -1, -1, 0.0, True, None, 0, None, 0, None, 1, 0, None)
    return lambda: torch.ops._vllm_fa3_C.fwd(
        q, k, v, *before, used, *after, *tail
    ), k.nbytes + v.nbytes


def flash_mla(batch, length):
    """One new token against a paged cache of 512 + 64 numbers a token: (a call, bytes of cache)."""
    page = 64
    q, cache = normal(batch, 1, HEADS, 576), normal(batch * length // page, page, 1, 576)
    table = torch.arange(batch * length // page, dtype=torch.int32, device="cuda").view(batch, -1)
    used = torch.full((batch,), length, dtype=torch.int32, device="cuda")
    decode = torch.ops._flashmla_C.dense_decode_fwd
    _, _, metadata, splits = decode(q, cache, 512, used, table, 576**-0.5, True, None, None, None)
    return lambda: decode(
        q, cache, 512, used, table, 576**-0.5, True, metadata, splits, None
    ), cache.nbytes


def microseconds(calls):
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(12):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times[2:])


def main(folder, lengths):
    load(pathlib.Path(folder))
    kinds = {  # and bytes a token
        "FlashAttention-3 MHA": (lambda b, m: flash_attention_3(b, m, HEADS), 8192),
        "FlashAttention-3 GQA-4": (lambda b, m: flash_attention_3(b, m, 4), 1024),
        "FlashAttention-3 MQA": (lambda b, m: flash_attention_3(b, m, 1), 256),
        "FlashMLA": (flash_mla, 1152),
    }
    for name, (make, per_token) in kinds.items():
        for batch in (1, 16):
            for length in lengths:
                size = per_token * batch * length
                if size > 20e9:
                    continue
                made = [make(batch, length) for _ in range(max(1, min(6, int(300e6 // size) + 1)))]
                time = microseconds([call for call, _ in made] * max(1, 6 // len(made)))
                result = dict(
                    name=name,
                    implementation="peer",
                    heads=HEADS,
                    batch=batch,
                    length=length,
                    microseconds=time,
                )
                print(json.dumps(result | dict(useful_bytes=size, cache_bytes=size)), flush=True)
                del made
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1], [int(x) for x in sys.argv[2:]])
