"""Tokens a second of the training step, and where its time goes.

    python -m benchmarks.train [--case NAME ...] [--torch] [--out DIR]

Each case runs in a process of its own: compiled, warmed up, timed over several windows of steps on
random tokens, then two steps under the profiler. The optimizer's step is included. MFU, whose
formula is printed with the tables, counts causal attention once (T/2 keys a token), the tied
embedding once (as the head) and recomputation not at all. Its rate is that of a 24576 x 1600 x 4352
product measured in the same run, a few in a row. Repeated for seconds, as in training, the same
product meets the card's power limit and is slower; that rate is recorded too.

--torch needs PyTorch, which the environment of `make test-torch` has (.venv-torch).
"""

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import plots
from benchmarks.device_time import device_seconds, intervals, normal
from benchmarks.record import Record, parser, provenance, write
from benchmarks.train_cases import CASES, TORCH, config_of
from benchmarks.train_tables import MFU, draw, kinds, speed
from t6jax.parallel.mesh import make_mesh
from t6jax.training.metrics import flops_per_token
from t6jax.training.step import Trainer

# kinds of kernels by what their names hold, the first that fits
KINDS = (
    ("attention", ("cudnn", "fmha", "flash", "sdpa", "attention_forward", "attention_gradient")),
    ("collectives", ("nccl",)),
    ("Q, K, V from factors", ("tensor_products",)),
    ("matrix products", ("nvjet", "gemm", "cutlass", "cublas", "splitk")),
    ("copies", ("copy", "memcpy", "memset", "transpose")),
    ("reductions", ("reduce",)),
)
OTHER = "fused elementwise"


def measure(name: str, overrides: dict[str, Any], windows: int = 5, steps: int = 8) -> Record:
    """Times one case in this process.

    Args:
        name: The case.
        overrides: Keys of the model to change, and batch_size.
        windows: How many windows are timed; the median counts.
        steps: Steps of a window.
    Returns:
        What the record holds of the case.
    """
    paper, rows, keys = CASES[name]
    overrides = dict(overrides)
    rows = overrides.pop("batch_size", rows)
    config = config_of(paper, rows, keys | overrides)
    model = config.model
    trainer = Trainer(config, make_mesh(config.mesh.to_dict()))
    state = trainer.create(jax.random.key(0))
    shape = (rows, model.context_length + 1)
    batches = [jax.random.randint(jax.random.key(i), shape, 0, model.vocab_size) for i in range(4)]
    batches = [jax.device_put(batch, trainer.batch_sharding) for batch in batches]
    start = time.perf_counter()
    step = trainer.step.lower(state, batches[0]).compile()
    compile_seconds = time.perf_counter() - start
    losses = []

    def advance(state, count):
        for i in range(count):
            state, metrics = step(state, batches[i % len(batches)])
            losses.append(metrics["train_loss"])
        jax.block_until_ready(state)
        return state

    state = advance(state, 3)
    seconds = []
    for _ in range(windows):
        start = time.perf_counter()
        state = advance(state, steps)
        seconds.append((time.perf_counter() - start) / steps)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            state = advance(state, 2)
        by_kind, by_kernel = breakdown(folder, 2)
    flops = flops_per_token(model, model.context_length)
    rate = rows * model.context_length / statistics.median(seconds)
    return {
        "name": name,
        "rows": rows,
        "layers": model.num_layers,
        "remat": model.remat,
        "unroll": model.unroll,
        "step_milliseconds": [1e3 * s for s in seconds],
        "tokens_per_second": rate,
        "flops_per_token": flops,
        "flops_per_second": rate * flops,
        "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0),
        "compile_seconds": compile_seconds,
        "milliseconds_by_kind": by_kind,
        "milliseconds_by_kernel": by_kernel,
        "last_loss": float(losses[-1]),
    }


def kind_of(kernel: str) -> str:
    """The kind that a kernel's name says it is of."""
    for kind, names in KINDS:
        if any(name in kernel.lower() for name in names):
            return kind
    return OTHER


def breakdown(folder: str, steps: int, most: int = 24) -> tuple[dict[str, float], dict[str, list]]:
    """Where the time of profiled steps went.

    Args:
        folder: The profiler's trace.
        steps: How many steps it holds.
        most: How many kernels to return.
    Returns:
        Milliseconds of a step by kind of kernel; and by kernel, for those that took most, with how
        often each ran in a step.
    """
    by_kind: dict[str, float] = collections.defaultdict(float)
    by_kernel = collections.defaultdict(lambda: [0.0, 0])
    for start, end, name in intervals(folder):
        milliseconds = (end - start) / 1e6 / steps
        by_kind[kind_of(name)] += milliseconds
        by_kernel[name][0] += milliseconds
        by_kernel[name][1] += 1
    top = sorted(by_kernel.items(), key=lambda item: -item[1][0])[:most]
    return dict(sorted(by_kind.items(), key=lambda kind: -kind[1])), {
        name: [round(ms, 3), count // steps] for name, (ms, count) in top
    }


def matmul_rate(m: int = 24576, k: int = 1600, n: int = 4352, sustained: int = 4000) -> Record:
    """FLOP/s of a bfloat16 matrix product: a few in a row, and `sustained` of them."""
    pairs = [(normal(i, m, k), normal(i + 100, k, n)) for i in range(4)]
    product = jax.jit(jnp.matmul)
    calls = [lambda a=a, b=b: product(a, b) for a, b in pairs * 3]
    seconds = device_seconds({"product": calls})["product"]
    start = time.perf_counter()
    for i in range(sustained):
        last = product(*pairs[i % len(pairs)])
    last.block_until_ready()
    sustained_seconds = (time.perf_counter() - start) / sustained
    flops = 2 * m * k * n
    return {
        "device": jax.devices()[0].device_kind,
        "matmul_flops_per_second": flops / seconds,
        "sustained_matmul_flops_per_second": flops / sustained_seconds,
    }


def measured_apart(name: str, overrides: dict[str, Any]) -> Record | None:
    """A case, or the matrix product's rate, in a process that has the GPU's memory to itself."""
    return _last_line(["benchmarks.train", "--measure", name, "--model", json.dumps(overrides)])


def _last_line(command: list[str]) -> Record | None:
    """The JSON that a module prints last, or None where it fails."""
    # a training run may take the card's memory, of which JAX by itself takes 75 %
    environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".95"}
    run = [sys.executable, "-m", *command]
    done = subprocess.run(run, stdout=subprocess.PIPE, text=True, env=environment)
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--case", action="append", choices=CASES, help="only this one; may be given several times"
    )
    arguments.add_argument(
        "--torch", action="store_true", help="also time PyTorch's step of the cases that have one"
    )
    arguments.add_argument(
        "--model", default="{}", help="keys of the model to change, as JSON; batch_size too"
    )
    # one case in this process, its numbers to stdout
    arguments.add_argument("--measure", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    overrides = json.loads(args.model)
    if args.measure == "matmul":
        print(json.dumps(matmul_rate()))
        return
    if args.measure:
        print(json.dumps(measure(args.measure, overrides)))
        return

    peak = measured_apart("matmul", {})
    if peak is None:
        raise SystemExit("the matrix product could not be timed: is there an NVIDIA GPU?")
    record = provenance("benchmarks.train", peak["device"], args.commit) | peak
    record |= {"results": [], "torch": {}}
    failed = []
    for name in args.case or CASES:
        result = measured_apart(name, overrides)
        if result is None:
            failed.append(name)
            continue
        record["results"].append(result)
        write(args.out, "train", record)
    # last, since torch.compile takes longer than all the cases
    for name in [r["name"] for r in record["results"] if args.torch and r["name"] in TORCH]:
        result = _last_line(["benchmarks.torch_t6", *TORCH[name]])
        if result is None:
            failed.append(f"{name}, PyTorch")
            continue
        record["torch"][name] = result
        write(args.out, "train", record)
    print("\n".join([speed(record), "", MFU, "", kinds(record)]))
    plots.draw(draw, record, args.out)
    if failed:
        raise SystemExit(f"failed, and not in the record: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
