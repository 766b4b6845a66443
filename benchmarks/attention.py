"""Causal attention over whole sequences, forward and backward, at the shapes that are trained.

    python -m benchmarks.attention [--shapes NAME ...] [--out DIR]

Times `t6jax.ops.attention`, with the kernels that it takes for the shape; cuDNN's flash attention;
and, for T6 XL's shape, the Pallas Mosaic GPU attention that comes with JAX (float16 and forward
only: its backward pass takes no causal mask) and tokamax's, where it is installed, with its own
choice of blocks and with others. Each is first compared with the formula. Times are the GPU's, from
the profiler, and count everything that a call launches. Operations are those of the causal half, 2
products forward and 5 backward. Writes attention_<gpu>.json and prints a table.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.attention_implementations import OURS, SHAPES, Attention, candidates, formula
from benchmarks.device_time import device_seconds
from benchmarks.record import Record, parser, provenance, write
from benchmarks.tables import heading, markdown

CHECKED_ROWS = 5  # enough for every multiprocessor to have a head


def draw(shape: tuple[int, ...], seed: int, dtype: Any) -> list[jax.Array]:
    """Random q, k, v and the gradient of the output."""
    keys = jax.random.split(jax.random.key(seed), 4)
    return [jax.random.normal(key, shape, dtype) for key in keys]


def with_gradients(
    f: Attention, shape: tuple[int, ...], dtype: Any, backward: bool
) -> list[jax.Array]:
    """Result and gradients of f on a few rows of this shape."""
    *inputs, grad = draw((CHECKED_ROWS, *shape[1:]), 0, dtype)

    @jax.jit
    def run(grad, *inputs):
        out, vjp = jax.vjp(f, *inputs)
        return [out, *(vjp(grad.astype(out.dtype)) if backward else ())]

    return run(grad, *inputs)


expected = functools.cache(functools.partial(with_gradients, formula))


def error(f: Attention, shape: tuple[int, ...], dtype: Any, backward: bool) -> float:
    """The largest distance of result and gradients from the formula, in units of their norms."""

    def distance(x: jax.Array, y: jax.Array) -> float:
        return float(jnp.linalg.norm(x.astype(jnp.float32) - y) / jnp.linalg.norm(y))

    found, wanted = with_gradients(f, shape, dtype, backward), expected(shape, dtype, backward)
    return max(map(distance, found, wanted))


def measure(f: Attention, shape: tuple[int, ...], dtype: Any, backward: bool) -> Record:
    """The error, and microseconds of the forward and of the backward pass."""
    found = {"relative_error": error(f, shape, dtype, backward)}
    forward, inputs = jax.jit(f), [draw(shape, seed, dtype) for seed in range(2)]
    calls = {"forward": [lambda x=x: forward(*x[:3]) for x in inputs] * 2}
    if backward:
        # the forward pass that a gradient follows may differ from the one without
        trained = jax.jit(lambda *x: jax.vjp(f, *x)[0])
        gradient = jax.jit(lambda q, k, v, g: jax.vjp(f, q, k, v)[1](g))
        calls["forward, trained"] = [lambda x=x: trained(*x[:3]) for x in inputs] * 2
        calls["both"] = [lambda x=x: gradient(*x) for x in inputs] * 2
    seconds = device_seconds(calls)
    found["forward_microseconds"] = seconds["forward"] * 1e6
    if backward:
        found["backward_microseconds"] = (seconds["both"] - seconds["forward, trained"]) * 1e6
    return found


def table(record: Record) -> str:
    """Microseconds and TFLOP/s by shape and implementation."""
    shapes = dict.fromkeys(r["shape"] for r in record["results"])
    named = "; ".join(f"{name} {SHAPES[name]}" for name in shapes)
    above = f"{heading(record)}; rows, tokens, heads, features: {named}"
    header = (
        "shape",
        "implementation",
        "forward us",
        "TFLOP/s",
        "backward us",
        "TFLOP/s",
        "error",
    )
    missing = "ModuleNotFoundError"  # a library that was not installed
    rows = [_row(r) for r in record["results"] if not r.get("failed", "").startswith(missing)]
    return "\n".join([above, "", *markdown(header, rows)])


def _row(r: Record) -> list[str]:
    if "failed" in r:
        return [r["shape"], r["name"], r["failed"], "", "", "", ""]
    rows, tokens, heads, features = SHAPES[r["shape"]]
    product = rows * heads * tokens**2 * features  # multiply and add, half of the square
    cells = []
    for key, products in (("forward_microseconds", 2), ("backward_microseconds", 5)):
        time = r.get(key)
        cells += [f"{time:.0f}", f"{products * product / time / 1e6:.0f}"] if time else ["", ""]
    return [r["shape"], r["name"], *cells, f"{r['relative_error']:.1e}"]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    args = arguments.parse_args()
    if jax.default_backend() != "gpu":
        arguments.error("this needs an NVIDIA GPU")
    device = jax.devices()[0].device_kind
    record = provenance("benchmarks.attention", device, args.commit) | {"results": []}
    for shape in args.shapes:
        for name, make, dtype, backward in candidates(shape):
            try:
                result = measure(make(), SHAPES[shape], dtype, backward)
            except Exception as e:  # whatever another library says to a shape or its blocks
                if name in OURS:
                    raise
                result = {"failed": f"{type(e).__name__}: {e}".splitlines()[0][:200]}
            record["results"].append({"shape": shape, "name": name} | result)
            write(args.out, "attention", record)
    print(table(record))


if __name__ == "__main__":
    main()
