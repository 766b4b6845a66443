"""Times FlashAttention-3 and FlashMLA decoding in PyTorch, for benchmarks.decode --peers.

    python -m benchmarks.peers DIR < CASES.json

DIR holds the libraries _vllm_fa3_C.abi3.so(.xz) and _flashmla_C.abi3.so of a vLLM wheel. The cases
are those of `cases`; a JSON object is printed for each (see benchmarks/other_kernels.py).
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator

from benchmarks.record import Record

D = 64
# name: (library, key-value heads or None for as many as there are query heads)
ATTENTION = {
    "FlashAttention-3 MHA": None,
    "FlashAttention-3 GQA-4": 4,
    "FlashAttention-3 MQA": 1,
}
LATENT, ROPE, PAGE = 512, 64, 64  # numbers a token that MLA caches; tokens of a page


def cases(heads: int, batch: int, lengths: Iterable[int]) -> Iterator[Record]:
    """One new token for each of `batch` sequences, for every mechanism and length."""
    for name, kv_heads in ATTENTION.items():
        numbers = 2 * D * (kv_heads or heads)
        yield from _cases(name, "FlashAttention-3", heads, batch, lengths, numbers)
    yield from _cases("FlashMLA", "FlashMLA", heads, batch, lengths, LATENT + ROPE)


def _cases(name, implementation, heads, batch, lengths, numbers) -> Iterator[Record]:
    for length in lengths:
        size = 2 * batch * length * numbers
        yield {
            "name": name,
            "implementation": implementation,
            "heads": heads,
            "batch": batch,
            "length": length,
            "useful_bytes": size,
            "cache_bytes": size,
        }


def load(folder: pathlib.Path) -> None:
    """Registers both libraries' operators with PyTorch."""
    import torch  # pyright: ignore[reportMissingImports] # optional

    library = folder / "_vllm_fa3_C.abi3.so"
    if not library.exists():
        library = pathlib.Path(tempfile.mkdtemp(), library.name)
        with library.open("wb") as file:
            subprocess.run(["xz", "-dc", folder / f"{library.name}.xz"], stdout=file, check=True)
    torch.ops.load_library(str(library))
    torch.ops.load_library(str(folder / "_flashmla_C.abi3.so"))


def flash_attention_3(batch: int, length: int, heads: int, kv_heads: int) -> Callable[[], object]:
    """A call: one new token against a dense cache."""
    import torch  # pyright: ignore[reportMissingImports] # optional

    from benchmarks.cuda_graph import normal

    q, k, v = (normal(batch, n, h, D) for n, h in ((1, heads), *[(length, kv_heads)] * 2))
    used = torch.full((batch,), length, dtype=torch.int32, device="cuda")
    before, after = [None] * 8, [None] * 11
    tail = (D**-0.5, True, -1, -1, 0.0, True, None, 0, None, 0, None, 1, 0, None)

    def call() -> object:
        return torch.ops._vllm_fa3_C.fwd(q, k, v, *before, used, *after, *tail)

    return call


def flash_mla(batch: int, length: int, heads: int) -> Callable[[], object]:
    """A call: one new token against a paged cache of 512 + 64 numbers a token."""
    import torch  # pyright: ignore[reportMissingImports] # optional

    from benchmarks.cuda_graph import normal

    width = LATENT + ROPE
    q, cache = normal(batch, 1, heads, width), normal(batch * length // PAGE, PAGE, 1, width)
    table = torch.arange(batch * length // PAGE, dtype=torch.int32, device="cuda").view(batch, -1)
    used = torch.full((batch,), length, dtype=torch.int32, device="cuda")
    scale = width**-0.5
    decode = torch.ops._flashmla_C.dense_decode_fwd
    *_, metadata, splits = decode(q, cache, LATENT, used, table, scale, True, None, None, None)

    def call() -> object:
        return decode(q, cache, LATENT, used, table, scale, True, metadata, splits, None)

    return call


def measure(case: Record) -> Record:
    """Microseconds of a case."""
    import torch  # pyright: ignore[reportMissingImports] # optional

    from benchmarks.cuda_graph import copies, microseconds

    def make() -> Callable[[], object]:
        sizes = case["batch"], case["length"], case["heads"]
        if case["name"] == "FlashMLA":
            return flash_mla(*sizes)
        return flash_attention_3(*sizes, ATTENTION[case["name"]] or case["heads"])

    made = [make() for _ in range(copies(case["cache_bytes"]))]
    found = {"microseconds": microseconds(made * max(1, 6 // len(made)))}
    del made
    torch.cuda.empty_cache()
    return found


def main() -> None:
    from benchmarks.other_kernels import answer

    load(pathlib.Path(sys.argv[1]))
    answer(json.load(sys.stdin), measure)


if __name__ == "__main__":
    main()
