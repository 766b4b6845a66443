"""T6 over two GPUs: do data 2, fsdp 2, tensor 2 and sequence 2 give one GPU's losses, and how much
faster are they?

    python -m benchmarks.scaling [--rows=64] [--steps=20] [--out=DIR]

With the launch scripts' flags, and on a CPU to check this program:

    bash -c 'source scripts/gpu_flags.sh && python -m benchmarks.scaling'
    export XLA_FLAGS=--xla_force_host_platform_device_count=2
    python -m benchmarks.scaling --tiny --out=/tmp

Every layout trains T6 medium from the same start on the same batches, the real optimizer step
included, in this one process, on a mesh of the first two GPUs. One GPU takes the rows of a step in
twice as many micro-batches, so that a GPU's micro-batches always have the same rows. Writes
scaling_<gpu>.json after each layout, and prints a table.

Noise: one GPU also takes the same step in four micro-batches, the same sums in another order. A
layout's losses count as one GPU's where they differ by at most a loss's rounding to bfloat16, 2^-8
of it, which is the precision of each token's logits.

NCCL_NVLS_ENABLE=0 is set, because not every machine has NVLink's multicast.
"""

import os
import sys
import tempfile
import time

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.record import Record, parser, provenance, write
from benchmarks.scaling_tables import progress
from benchmarks.train import breakdown
from configs import medium_tpa
from t6jax.config import RunConfig
from t6jax.parallel.collectives import collectives, totals
from t6jax.parallel.mesh import MESH_AXES
from t6jax.training.metrics import flops_per_token
from t6jax.training.step import Trainer

LAYOUTS = {
    "one": {},
    "data 2": {"data": 2},
    "fsdp 2": {"fsdp": 2},
    "tensor 2": {"tensor": 2},
    "sequence 2": {"sequence": 2},
    "one, other order": {},
}
WARM_UP = 3  # steps that are not timed


def settings(layout: str, rows: int, steps: int, tiny: bool) -> RunConfig:
    """The config of a layout."""
    config = medium_tpa.get_config()
    config.batch_size = rows
    config.optimizer.update(warmup_steps=5, decay_steps=10 * steps)
    if tiny:
        config.model.update(
            num_layers=2, d_model=64, context_length=64, vocab_size=512, dtype="float32"
        )
        config.model.attention.update(num_heads=7, head_dim=16)
    # rows of a micro-batch on each device are the same in all layouts; tensor 2 and sequence 2 have
    # the same rows on both
    config.accumulation_steps = {"data 2": 1, "fsdp 2": 1, "one, other order": 4}.get(layout, 2)
    config.mesh.update({axis: LAYOUTS[layout].get(axis, 1) for axis in MESH_AXES})
    return RunConfig.from_dict(config.to_dict())


def batches(rows: int, length: int, vocabulary: int, steps: int) -> list[np.ndarray]:
    """Random batches that can be learned: rows that count up, a third of their tokens replaced."""
    draw = np.random.default_rng(0)
    made = []
    for _ in range(steps):
        counting = (draw.integers(0, vocabulary, (rows, 1)) + np.arange(length + 1)) % vocabulary
        noise = draw.random(counting.shape) < 1 / 3
        made.append(
            np.where(noise, draw.integers(0, vocabulary, counting.shape), counting).astype(np.int32)
        )
    return made


def measure(layout: str, rows: int, steps: int, tiny: bool) -> Record:
    """Trains over a layout: tokens a second, time and bytes of collectives, losses."""
    config = settings(layout, rows, steps, tiny)
    model = config.model
    sizes = [getattr(config.mesh, axis) for axis in MESH_AXES]
    devices = int(np.prod(sizes))
    trainer = Trainer(config, Mesh(np.array(jax.devices()[:devices]).reshape(sizes), MESH_AXES))
    state = trainer.create(jax.random.key(0))
    windows = [
        jax.device_put(x, trainer.batch_sharding)
        for x in batches(rows, model.context_length, model.vocab_size, steps)
    ]
    began = time.perf_counter()
    step = trainer.step.lower(state, windows[0]).compile()
    compiled = time.perf_counter() - began
    losses = []
    for number, batch in enumerate(windows):
        if number == WARM_UP:
            jax.block_until_ready(losses)
            began = time.perf_counter()
        state, metrics = step(state, batch)
        losses.append(metrics["train_loss"])
    losses = [float(x) for x in jax.block_until_ready(losses)]
    rate = rows * model.context_length * (steps - WARM_UP) / (time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for batch in windows[:2]:
                state, _ = step(state, batch)
            jax.block_until_ready(state)
        kinds, _ = breakdown(folder, 2 * devices)
    memory = step.memory_analysis()
    return {
        "layout": layout,
        "devices": devices,
        "accumulation_steps": config.accumulation_steps,
        "tokens_per_second": rate,
        "tflops_per_second_a_device": rate
        * flops_per_token(model, model.context_length)
        / devices
        / 1e12,
        "compile_seconds": compiled,
        "arguments_bytes_a_device": memory.argument_size_in_bytes,
        "temporary_bytes_a_device": memory.temp_size_in_bytes,
        "milliseconds_by_kind_a_device": kinds,
        "collectives": {
            kind: {"count": n, "bytes": size}
            for kind, (n, size) in totals(collectives(step)).items()
        },
        "losses": losses,
    }


def compared(results: list[Record]) -> list[Record]:
    """The results, each with its speed and losses relative to one GPU's."""
    one = results[0]
    for r in results[1:]:
        difference = [abs(a - b) / b for a, b in zip(r["losses"], one["losses"], strict=True)]
        r["largest_relative_difference_of_losses"] = max(difference)
        r["within_bfloat16_noise"] = max(difference) <= 2**-8
        r["of_so_many_times_one"] = r["tokens_per_second"] / (
            r["devices"] * one["tokens_per_second"]
        )
    return results


def main() -> None:
    # before JAX starts its backend
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=64, help="of a step; a multiple of 4")
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument(
        "--tiny", action="store_true", help="a tiny model, to check this program"
    )
    arguments.add_argument(
        "--layouts",
        nargs="+",
        default=list(LAYOUTS),
        choices=list(LAYOUTS),
        help="only these, `one` first",
    )
    args = arguments.parse_args()
    if args.layouts[0] != "one":
        sys.exit("--layouts must begin with `one`, with which the others are compared")
    if jax.device_count() < 2 or args.rows % 4 or args.steps <= WARM_UP:
        sys.exit(
            f"this needs two devices (there are {jax.device_count()}), --rows a multiple of 4, "
            f"--steps above {WARM_UP}"
        )
    record = provenance("benchmarks.scaling", jax.devices()[0].device_kind, args.commit) | {
        "environment": {
            name: os.environ[name]
            for name in ("NCCL_NVLS_ENABLE", "XLA_FLAGS")
            if name in os.environ
        },
        "model": "tiny" if args.tiny else "medium_tpa",
        "rows": args.rows,
        "results": [],
    }
    for layout in args.layouts:
        record["results"] = compared(
            [*record["results"], measure(layout, args.rows, args.steps, args.tiny)]
        )
        write(args.out, "scaling", record)
        print(f"{layout}: done", flush=True)
    print("\n".join(progress(record)))


if __name__ == "__main__":
    main()
