"""How long calls keep the GPU busy, read from the profiler."""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu


def intervals(folder):
    """(start, end, name) in nanoseconds of everything that ran on the GPU."""
    [trace] = pathlib.Path(folder).rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        if plane.name.startswith("/device:GPU"):
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    for event in line.events:
                        yield event.start_ns, event.start_ns + event.duration_ns, event.name


@jax.jit
def wait_a_while():
    """Keeps the stream waiting for a millisecond or two, under a name that the profiler shows."""

    def kernel(out):
        @plgpu.inline_mgpu()
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


def device_seconds(calls, repeats=2):
    """The time in which a kernel of the calls runs, divided by their number: the best of the
    repeats, for each list of calls.

    calls: {name: list of functions without arguments}. The functions of a list should differ in
    their data, together larger than the L2 cache. The GPU sleeps before each list, so that the host
    is ahead when the list's turn comes and kernels follow one another as they do in a model.
    """
    for functions in calls.values():
        jax.block_until_ready([f() for f in functions])
    jax.block_until_ready(wait_a_while())
    best = {}
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
        for (name, functions), group in zip(calls.items(), groups):
            total, reached = 0, 0
            for start, end in group:
                total += max(0, end - max(start, reached))
                reached = max(reached, end)
            best[name] = min(best.get(name, float("inf")), total / 1e9 / len(functions))
    return best


def read_bandwidth(gigabytes=8):
    """Bytes a second of reading a large array once and writing next to nothing."""
    arrays = [
        jax.random.normal(jax.random.key(i), (gigabytes * 2**28,), jnp.float32) for i in range(2)
    ]
    total = jax.jit(jnp.sum)
    seconds = device_seconds({"sum": [lambda x=x: total(x) for x in arrays * 3]})["sum"]
    return arrays[0].nbytes / seconds
