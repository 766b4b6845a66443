"""How long calls keep the GPU busy, read from the profiler."""

import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu


def normal(seed: int, *shape: int, dtype: Any = jnp.bfloat16) -> jax.Array:
    """Random numbers."""
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def intervals(folder: pathlib.Path | str) -> Iterator[tuple[float, float, str]]:
    """(start, end, name) in nanoseconds of everything that ran on the GPU, from a trace."""
    [trace] = pathlib.Path(folder).rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        if plane.name.startswith("/device:GPU"):
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    for event in line.events:
                        yield event.start_ns, event.start_ns + event.duration_ns, event.name


@jax.jit
def wait_a_while() -> jax.Array:
    """Keeps the stream waiting for a millisecond or two, under a name that the profiler shows."""

    def kernel(out):
        @cast(Any, plgpu.inline_mgpu)()  # which passes the context itself
        def sleep(_):
            for _ in range(2):
                utils.inline_ptx("nanosleep.u32 1000000;", has_side_effects=True)

        sleep()
        out[0] = jnp.int32(0)

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((1,), jnp.int32),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        kernel_name="wait_a_while",
    )()


def device_seconds[Name](
    calls: Mapping[Name, Sequence[Callable[[], Any]]], repeats: int = 2
) -> dict[Name, float]:
    """The time during which a kernel of the calls runs, divided by their number.

    The GPU sleeps before each list of calls, so that the host is ahead when the calls start and
    kernels follow one another as they do in a model.

    Args:
        calls: Lists of functions without arguments. The functions of a list should differ in their
            data, which together should be larger than the L2 cache.
        repeats: How often each list is timed; the best time counts.
    Returns:
        Seconds of one call, for each list.
    """
    for functions in calls.values():
        jax.block_until_ready([f() for f in functions])
    jax.block_until_ready(wait_a_while())
    best: dict[Name, float] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                for functions in calls.values():
                    wait_a_while()
                    jax.block_until_ready([f() for f in functions])
            groups = []
            for start, end, name in sorted(intervals(folder)):
                if "wait_a_while" in name:
                    groups.append([])
                elif groups:
                    groups[-1].append((start, end))
        assert len(groups) == len(calls), (len(groups), len(calls))
        for (name, functions), group in zip(calls.items(), groups, strict=True):
            seconds = busy_nanoseconds(group) / 1e9 / len(functions)
            best[name] = min(best.get(name, float("inf")), seconds)
    return best


def busy_nanoseconds(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of (start, end) pairs that are sorted by their start."""
    total = reached = 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def read_bandwidth(gigabytes: int = 8) -> float:
    """Bytes a second of reading a large array once and writing next to nothing."""
    arrays = [normal(i, gigabytes * 2**28, dtype=jnp.float32) for i in range(2)]
    total = jax.jit(jnp.sum)
    seconds = device_seconds({"sum": [lambda x=x: total(x) for x in arrays * 3]})["sum"]
    return arrays[0].nbytes / seconds
