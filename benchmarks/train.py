"""Tokens a second of the training step, and where its time goes. usage: python -m benchmarks.train
[--case NAME ...] [--torch]

Each case runs in a process of its own: compiled, warmed up, timed over several windows of steps on
random tokens, then two steps under the profiler. The optimizer's step is included. MFU, whose
formula is printed beside the tables, counts causal attention once (T/2 keys a token), the tied
embedding once (as the head), recomputation not at all, and the rate is that of a 24576 x 1600 x
4352 product measured in the same run, a few in a row. Repeated for seconds, as in training, the
same product runs into the card's power limit, and slower; that rate is recorded beside the other.

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

import jax
import jax.numpy as jnp

from benchmarks.device_time import device_seconds, intervals
from benchmarks.record import add_arguments, provenance, write
from configs import common
from t6jax.config import ModelConfig
from t6jax.parallel.mesh import make_mesh
from t6jax.training.metrics import flops_per_token
from t6jax.training.step import Trainer

MFU = (
    "MFU = tokens/s x (6 x parameters + 12 x layers x heads x head_dim x T/2) / rate of "
    "the matrix product, T tokens a row"
)
CONTEXT = 1024  # tokens a row, in all of them
XL = dict(size="xl", mechanism="tpa", num_heads=78, rank_q=6, rank_k=2, rank_v=2)
MEDIUM = dict(size="medium", mechanism="tpa", num_heads=47, rank_q=6, rank_k=2, rank_v=2)
# name: the paper's settings, then rows a step and keys of the model
CASES = {
    "T6 XL width, 12 layers": (XL, 24, {"num_layers": 12, "remat": "none", "unroll": True}),
    "T6 XL": (XL, 24, {"remat": "none", "unroll": True}),
    "T6 XL, rebuilding what is cheap": (XL, 24, {"remat": "dots", "unroll": True}),
    "T6 medium": (MEDIUM, 32, {"remat": "none", "unroll": True}),
    "MHA XL width, 12 layers": (
        dict(size="xl", mechanism="mha", num_heads=25),
        24,
        {"num_layers": 12, "remat": "none", "unroll": True},
    ),
}
# the arguments of benchmarks.torch_t6 for the cases that it times too
TORCH = {
    "T6 XL width, 12 layers": ("12", "1600", "78", "24"),
    "T6 medium": ("24", "1024", "47", "32"),
}

# kinds of kernels by what their names hold, the first that fits
KINDS = (
    ("attention", ("cudnn", "fmha", "flash", "sdpa", "attention_forward", "attention_gradient")),
    ("collectives", ("nccl",)),
    ("Q, K, V from factors", ("tensor_products",)),
    ("matrix products", ("nvjet", "gemm", "cutlass", "cublas", "splitk")),
    ("copies", ("copy", "memcpy", "memset", "transpose")),
    ("reductions", ("reduce",)),
)


def config_of(paper, rows, model):
    config = common.paper(**paper)
    config.batch_size, config.accumulation_steps = rows, 1
    config.model.update(model)
    return config.to_dict()


def measure(name, overrides, windows=5, steps=8):
    """One case, in this process: its numbers as a dict."""
    paper, rows, keys = CASES[name]
    overrides = dict(overrides)
    rows = overrides.pop("batch_size", rows)
    config = config_of(paper, rows, keys | overrides)
    model = ModelConfig.from_dict(config["model"])
    trainer = Trainer(config, model, make_mesh(config["mesh"]))
    state = trainer.create(jax.random.key(0))
    shape = (config["batch_size"], model.context_length + 1)
    batches = [jax.random.randint(jax.random.key(i), shape, 0, model.vocab_size) for i in range(4)]
    batches = [jax.device_put(batch, trainer.batch_sharding) for batch in batches]
    start = time.perf_counter()
    step = trainer.step.lower(state, batches[0]).compile()
    compile_seconds = time.perf_counter() - start
    losses = []

    def advance(state, steps):
        for i in range(steps):
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
        kinds, kernels = breakdown(folder, 2)
    tokens = shape[0] * model.context_length
    flops = flops_per_token(model, model.context_length)
    rate = tokens / statistics.median(seconds)
    return dict(
        name=name,
        rows=shape[0],
        layers=model.num_layers,
        remat=model.remat,
        unroll=model.unroll,
        step_milliseconds=[1e3 * s for s in seconds],
        tokens_per_second=rate,
        flops_per_token=flops,
        flops_per_second=rate * flops,
        peak_bytes=(jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0),
        compile_seconds=compile_seconds,
        milliseconds_by_kind=kinds,
        milliseconds_by_kernel=kernels,
        last_loss=float(losses[-1]),
    )


def breakdown(folder, steps, most=24):
    """Milliseconds a step that kernels of each kind took, and the kernels that took most with how
    often they ran.
    """
    kinds, kernels = collections.Counter(), collections.defaultdict(lambda: [0.0, 0])
    for start, end, name in intervals(folder):
        milliseconds = (end - start) / 1e6 / steps
        kinds[
            next(
                (kind for kind, parts in KINDS if any(p in name.lower() for p in parts)),
                "fused elementwise",
            )
        ] += milliseconds
        kernels[name][0] += milliseconds
        kernels[name][1] += 1
    top = sorted(kernels.items(), key=lambda item: -item[1][0])[:most]
    return dict(kinds.most_common()), {
        name: [round(ms, 3), count // steps] for name, (ms, count) in top
    }


def matmul_rate(m=24576, k=1600, n=4352, sustained=4000):
    """FLOP/s of a bfloat16 matrix product on random numbers: a few in a row, and so many of them,
    about two seconds' work.
    """
    random = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)
    pairs = [(random(i, m, k), random(i + 100, k, n)) for i in range(4)]
    product = jax.jit(jnp.matmul)
    seconds = device_seconds({"product": [lambda a=a, b=b: product(a, b) for a, b in pairs * 3]})[
        "product"
    ]
    start = time.perf_counter()
    for i in range(sustained):
        last = product(*pairs[i % len(pairs)])
    last.block_until_ready()
    sustained_seconds = (time.perf_counter() - start) / sustained
    flops = 2 * m * k * n
    return dict(
        device=jax.devices()[0].device_kind,
        matmul_flops_per_second=flops / seconds,
        sustained_matmul_flops_per_second=flops / sustained_seconds,
    )


def table(record):
    """Tokens a second, beside PyTorch's where it was timed."""
    rate, sustained = (
        record[key] / 1e12
        for key in ("matmul_flops_per_second", "sustained_matmul_flops_per_second")
    )
    yield (
        f"{record['device']}, {record['date']}, JAX {record['jax']}; the matrix product ran at "
        f"{rate:.0f} TFLOP/s, and at "
        f"{sustained:.0f} when repeated for seconds."
    )
    yield ""
    yield (
        "| 1,024 tokens a row | rows | tokens/s | PyTorch's | ms a step | TFLOP/s | MFU | "
        "peak GiB | compile s |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for r in record["results"]:
        peer = record["torch"].get(r["name"])
        cells = [
            r["name"],
            r["rows"],
            f"{r['tokens_per_second']:,.0f}",
            f"{peer['tokens_per_second']:,.0f}" if peer else "",
            f"{statistics.median(r['step_milliseconds']):.1f}",
            f"{r['flops_per_second'] / 1e12:.0f}",
            f"{100 * r['flops_per_second'] / record['matmul_flops_per_second']:.0f} %",
            f"{r['peak_bytes'] / 2**30:.1f}",
            f"{r['compile_seconds']:.0f}",
        ]
        yield "| " + " | ".join(map(str, cells)) + " |"


def kinds_table(record):
    """Milliseconds of a step by kind of kernel, from the profiler."""
    kinds = list(
        dict.fromkeys(kind for r in record["results"] for kind in r["milliseconds_by_kind"])
    )
    yield "| ms a step | " + " | ".join(kinds) + " |"
    yield "|---|" + "---|" * len(kinds)
    for r in record["results"]:
        yield (
            f"| {r['name']} | "
            + " | ".join(f"{r['milliseconds_by_kind'].get(kind, 0):.1f}" for kind in kinds)
            + " |"
        )


def draw(record, out):
    """Where each case's time goes: microseconds a token, by kind of kernel."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    results = record["results"]
    per_token = [
        {kind: 1e3 * ms / (r["rows"] * CONTEXT) for kind, ms in r["milliseconds_by_kind"].items()}
        for r in results
    ]
    kinds = sorted(
        {kind for times in per_token for kind in times},
        key=lambda kind: -sum(t.get(kind, 0) for t in per_token),
    )
    _, axes = plt.subplots(figsize=(9, 0.6 * len(results) + 1.6))
    left = [0.0] * len(results)
    for kind in kinds:
        widths = [times.get(kind, 0) for times in per_token]
        axes.barh([r["name"] for r in results], widths, left=left, label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel(
        f"microseconds a token, forward, backward and AdamW ({record['device']}, {record['date']})"
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    plt.savefig(out / "train_kernels.png", dpi=120, bbox_inches="tight")
    plt.close()


def in_a_process_of_its_own(name, overrides):
    """A case, or the matrix product's rate, measured where nothing else holds the GPU's memory."""
    return _last_line(["benchmarks.train", "--measure", name, "--model", json.dumps(overrides)])


def _last_line(command):
    """The JSON that a module prints last, or None where it fails."""
    # a training run may take the card's memory, of which JAX by itself takes 75 %
    environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".95"}
    done = subprocess.run(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, env=environment
    )
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--case", action="append", choices=CASES, help="only this one; may be given several times"
    )
    parser.add_argument(
        "--torch",
        action="store_true",
        help="time PyTorch's step of the same shapes too, where it is known",
    )
    parser.add_argument(
        "--model", default="{}", help="keys of the model to change, as JSON; batch_size too"
    )
    parser.add_argument(
        "--measure", help=argparse.SUPPRESS
    )  # one case in this process, its numbers to stdout
    add_arguments(parser)
    args = parser.parse_args()
    overrides = json.loads(args.model)
    if args.measure:
        print(
            json.dumps(
                matmul_rate() if args.measure == "matmul" else measure(args.measure, overrides)
            )
        )
        return
    ceiling = in_a_process_of_its_own("matmul", {})
    if ceiling is None:
        raise SystemExit("the matrix product could not be timed: is there an NVIDIA GPU?")
    record = (
        provenance("benchmarks.train", ceiling["device"], args.commit)
        | ceiling
        | {"results": [], "torch": {}}
    )
    failed = []
    for name in args.case or CASES:
        result = in_a_process_of_its_own(name, overrides)
        if result is None:
            failed.append(name)
            continue
        record["results"].append(result)
        write(args.out, "train", record)
    # afterwards: torch.compile takes longer than all the cases
    for name in (r["name"] for r in record["results"] if args.torch and r["name"] in TORCH):
        peer = _last_line(["benchmarks.torch_t6", *TORCH[name]])
        if peer is None:
            failed.append(f"{name}, PyTorch")
            continue
        record["torch"][name] = peer
        write(args.out, "train", record)
    print("\n".join([*table(record), "", MFU, "", *kinds_table(record)]))
    draw(record, args.out)
    if failed:
        raise SystemExit(f"failed, and not in the record: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
