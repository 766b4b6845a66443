"""Times the FlashTPA decode kernels of the paper's authors, for benchmarks.decode --published.

    python -m benchmarks.published DIR < CASES.json

DIR is a checkout of github.com/tensorgi/TPA; its `decode/` holds the kernels, which are imported
from there when they are timed and need PyTorch and Triton. Of the three functions in each file this
times `tpa_decode_parallel_bn_triton`, the one that splits a long cache over multiprocessors. One
file takes R_K = R_V = 1, the other any rank. Both compile anew for every length and batch, and all
sequences of a batch have one length.

The general kernel is documented with the rank as the last axis of the cache, and copies the whole
cache into the order [B, R, M, H] on every call. It is also timed on a cache that is in this order
already, where nothing is copied.

The cases are those of `cases`; a JSON object is printed for each (see benchmarks/other_kernels.py).
"""

import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

from benchmarks.record import Record

D = 64
FUNCTION = "tpa_decode_parallel_bn_triton"
FILES = {  # by whether R_K = R_V = 1
    True: "flashtpa_decode_triton.py",
    False: "flashtpa_decode_triton_multi_kvrank.py",
}
# implementation: whether the cache is in the order that the kernel reads
IMPLEMENTATIONS = {"published Triton": False, "published Triton, no copy": True}
CHECKED = 2**16  # tokens of a batch up to which a result is compared with the formula


def cases(
    name: str, heads: int, ranks: tuple[int, int, int], batch: int, lengths: Iterable[int]
) -> Iterator[Record]:
    """One new token for each of `batch` sequences, R_Q, R_K, R_V = ranks, for every length."""
    copied = [*IMPLEMENTATIONS][: 1 if ranks[1:] == (1, 1) else 2]
    for length in lengths:
        size = 2 * batch * length * (ranks[1] + ranks[2]) * (heads + D)
        for implementation in copied:
            yield {
                "name": name,
                "implementation": implementation,
                "heads": heads,
                "batch": batch,
                "length": length,
                "ranks": list(ranks),
                "useful_bytes": size,
                "cache_bytes": size,
            }


def checkout(folder: pathlib.Path) -> Record:
    """Which version of the kernels a checkout holds: git's name of each file's content."""
    blobs = {}
    for name in FILES.values():
        path = folder / "decode" / name
        if path.exists():
            content = path.read_bytes()
            blob = b"blob %d\0" % len(content) + content
            blobs[f"decode/{name}"] = hashlib.sha1(blob).hexdigest()
    return {"repository": "github.com/tensorgi/TPA", "git_blobs": blobs}


@functools.cache
def load(folder: pathlib.Path, single_rank: bool) -> ModuleType:
    """The module of a kernel, imported from the checkout."""
    path = folder / "decode" / FILES[single_rank]
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no decode/{path.name}")
    spec = importlib.util.spec_from_file_location(f"published_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def arguments(case: Record, normal: Callable[..., Any]) -> list[Any]:
    """aq, ak, av, bq, bk, bv as the kernel takes them.

    Args:
        case: A case of `cases`.
        normal: Makes a tensor of random numbers of a shape.
    Returns:
        aq [B, 1, H, R_Q], bq [B, 1, R_Q, D]; and, for R_K = R_V = 1, ak, av [B, M, H] and bk, bv
        [B, M, D], else ak, av [B, M, H, R] and bk, bv [B, M, D, R].
    """
    batch, length, heads = case["batch"], case["length"], case["heads"]
    rank_q, rank_k, rank_v = case["ranks"]

    def cached(width: int, rank: int) -> Any:
        if rank_k == rank_v == 1:
            return normal(batch, length, width)
        if IMPLEMENTATIONS[case["implementation"]]:
            return normal(batch, rank, length, width).permute(0, 2, 3, 1)
        return normal(batch, length, width, rank)

    aq, bq = normal(batch, 1, heads, rank_q), normal(batch, 1, rank_q, D)
    ak, av = cached(heads, rank_k), cached(heads, rank_v)
    bk, bv = cached(D, rank_k), cached(D, rank_v)
    return [aq, ak, av, bq, bk, bv]


def formula(aq: Any, ak: Any, av: Any, bq: Any, bk: Any, bv: Any) -> Any:
    """Equations 3.1 to 3.4 in float32 on a kernel's arguments: [B, 1, H, D]."""
    import torch  # pyright: ignore[reportMissingImports] # optional

    aq, ak, av, bq, bk, bv = (x.float() for x in (aq, ak, av, bq, bk, bv))
    if ak.ndim == 3:
        ak, av, bk, bv = (x[..., None] for x in (ak, av, bk, bv))
    q = torch.einsum("bnhr,bnrd->bnhd", aq, bq) / aq.shape[-1]
    k = torch.einsum("bmhr,bmdr->bmhd", ak, bk) / ak.shape[-1]
    v = torch.einsum("bmhr,bmer->bmhe", av, bv) / av.shape[-1]
    weights = (torch.einsum("bnhd,bmhd->bnhm", q, k) * q.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum("bnhm,bmhe->bnhe", weights, v)


def relative_error(kernel: Callable[..., Any], given: Sequence[Any]) -> float:
    """The distance of a kernel's result from the formula, in units of the formula's norm."""
    wanted = formula(*given)
    return float((kernel(*given).float() - wanted).norm() / wanted.norm())


def measure(case: Record, folder: pathlib.Path) -> Record:
    """Microseconds of a case and, where it is small enough for the formula, the error."""
    import torch  # pyright: ignore[reportMissingImports] # optional

    from benchmarks.cuda_graph import copies, microseconds, normal

    kernel = getattr(load(folder, case["ranks"][1:] == [1, 1]), FUNCTION)
    caches = [arguments(case, normal) for _ in range(copies(case["cache_bytes"]))]
    found = {}
    if case["batch"] * case["length"] <= CHECKED:
        found["relative_error"] = relative_error(kernel, caches[0])

    def call(given: Sequence[Any]) -> Callable[[], object]:
        return lambda: kernel(*given)

    found["microseconds"] = microseconds([call(c) for c in caches] * max(1, 6 // len(caches)))
    del caches
    torch.cuda.empty_cache()
    return found


def compile_ahead(folder: str, todo: Sequence[Record]) -> None:
    """Runs every case once, in several processes, which leaves the kernels in Triton's disk cache.

    Six variants are compiled for every length and batch: one process takes minutes. Failures are
    left to the process that times the cases.
    """
    workers = max(1, min(8, (os.cpu_count() or 1) // 2, len(todo)))
    command = [sys.executable, "-m", "benchmarks.published", folder, "--once"]
    running = []
    for i in range(workers):
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert process.stdin
        process.stdin.write(json.dumps(list(todo[i::workers])).encode())
        process.stdin.close()
        running.append(process)
    for process in running:
        process.wait()


def once(case: Record, folder: pathlib.Path) -> Record:
    """Runs a case's kernel once."""
    from benchmarks.cuda_graph import normal

    getattr(load(folder, case["ranks"][1:] == [1, 1]), FUNCTION)(*arguments(case, normal))
    return {}


def main() -> None:
    from benchmarks.other_kernels import answer

    folder = pathlib.Path(sys.argv[1])
    run = once if "--once" in sys.argv[2:] else measure
    answer(json.load(sys.stdin), lambda case: run(case, folder))


if __name__ == "__main__":
    main()
