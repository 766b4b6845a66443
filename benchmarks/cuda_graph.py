"""Times calls of PyTorch kernels as replays of a CUDA graph."""

import statistics
from collections.abc import Callable, Sequence

import torch  # pyright: ignore[reportMissingImports] # optional

REPLAYS, DISCARDED = 12, 2


def normal(*shape: int) -> torch.Tensor:
    """Random bfloat16 numbers, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.randn(shape, dtype=torch.bfloat16, device=device)


def copies(cache_bytes: int) -> int:
    """How many caches to cycle through so that a call does not find its cache in L2 (at most 6)."""
    return max(1, min(6, int(300e6 // cache_bytes) + 1))


def microseconds(calls: Sequence[Callable[[], object]]) -> float:
    """The median time of a call, all of them in one CUDA graph that is replayed.

    Args:
        calls: The same call on different data; each runs once outside the graph first.
    Returns:
        Microseconds of one call.
    """
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times[DISCARDED:])
