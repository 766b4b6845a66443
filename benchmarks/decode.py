"""Times FlashTPA decoding on one GPU beside plain XLA and, with --peers, beside FlashAttention-3
and FlashMLA.

    python -m benchmarks.decode [--quick] [--peers DIR] [--out benchmarks/results] [--commit HASH]

Writes decode_<gpu>.json, prints its tables, and draws the paper's Figures 5, 7 and 8 and a roofline
plot beside it. DIR holds the peers' libraries, _vllm_fa3_C.abi3.so(.xz) and _flashmla_C.abi3.so. A
case is one new token for each of B sequences; all lengths run inside one allocation, compiled once.
What else is timed is in benchmarks/decode_cases.py.
"""

import argparse
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp

from benchmarks import decode_cases, report
from benchmarks.device_time import device_seconds, read_bandwidth
from benchmarks.record import add_arguments, provenance, write
from pallas_kernels.decode import flash_tpa
from pallas_kernels.decode.cache_layout import CacheLayout, unpack

D = 64
PAPER = [
    ("TPA 16,1,1", CacheLayout(heads, 1, 1, D, D), 16) for heads in (16, 32, 48)
]  # d_model 1024, 2048, 3072
TRAINED_HEADS = {"small": 34, "medium": 47, "large": 61, "XL": 78}
TRAINED = [
    (f"T6 {size}", CacheLayout(heads, 2, 2, D, D), 6) for size, heads in TRAINED_HEADS.items()
]
COPIES = 6  # of the cache, taken in turn, so that no call finds its cache in L2 unless six fit


@functools.partial(jax.jit, static_argnames="layout")
def algorithm_1(query, rows, lengths, layout):
    """The paper's Algorithm 1 as XLA compiles it."""
    a_k, b_k, a_v, b_v = unpack(layout, rows)
    (a_q, b_q), M = query, rows.shape[1]
    q = jnp.einsum("bnrh,bnrd->bnhd", a_q, b_q) / a_q.shape[2]
    logits = jnp.einsum("bmrh,bmrd,bnhd->bnhm", a_k, b_k, q, preferred_element_type=jnp.float32)
    logits *= layout.dim_k**-0.5 / layout.rank_k
    p = jax.nn.softmax(
        jnp.where((jnp.arange(M) < lengths[:, None])[:, None, None], logits, -jnp.inf)
    ).astype(rows.dtype)
    return jnp.einsum("bnhm,bmrh,bmre->bnhe", p, a_v, b_v) / layout.rank_v


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def time_tpa(name, layout, R_Q, batch, lengths, beside):
    capacity, results = max(lengths), []
    query = normal(0, (batch, 1, R_Q, layout.heads)), normal(1, (batch, 1, R_Q, D))
    caches = [normal(2 + i, (batch, capacity, layout.width)) for i in range(COPIES)]
    filled = {length: jnp.full((batch,), length, jnp.int32) for length in lengths}

    def times(kernel, lengths):
        decode = jax.jit(functools.partial(flash_tpa.decode, layout=layout, kernel=kernel))
        calls = {
            length: [lambda c=c, x=filled[length]: decode(query, c, x) for c in caches * 2]
            for length in lengths
        }
        return device_seconds(calls)

    entry = lambda implementation, length, seconds: dict(
        name=name,
        implementation=implementation,
        heads=layout.heads,
        batch=batch,
        length=length,
        microseconds=seconds * 1e6,
        useful_bytes=2 * batch * length * layout.useful_width,
        cache_bytes=2 * batch * length * layout.width,
    )
    results += [
        entry("mosaic_gpu", length, seconds)
        for length, seconds in times("mosaic_gpu", lengths).items()
    ]
    if beside:
        results += [
            entry("triton", length, seconds) for length, seconds in times("triton", lengths).items()
        ]
    for length in lengths if beside else ():
        if (
            batch * length <= 2**21
        ):  # a shape of its own for each length: XLA's time follows the allocation
            cut = [c[:, :length] for c in caches[:3]]
            calls = {
                length: [lambda c=c: algorithm_1(query, c, filled[length], layout) for c in cut * 2]
            }
            results.append(entry("xla", length, device_seconds(calls)[length]))
    for r in results:
        print(
            f"{name}, B {batch}, {r['length']}: {r['implementation']} {r['microseconds']:.1f} us",
            flush=True,
        )
    return results


def measure(quick, peers):
    lengths = [2**12, 2**14, 2**17, 2**19] if quick else [2**i for i in range(12, 20)]
    cases, results = decode_cases.measure(), []
    for name, layout, R_Q in PAPER if not quick else PAPER[1:2]:
        for batch in (1, 16) if quick else (1, 2, 4, 8, 16):
            results += time_tpa(
                name,
                layout,
                R_Q,
                batch,
                lengths,
                beside=not quick and layout.heads == 32 and batch in (1, 16),
            )
    for name, layout, R_Q in TRAINED:
        for batch in (1, 16):
            results += time_tpa(
                name, layout, R_Q, batch, [2**17] if quick else [2**12, 2**14, 2**17], beside=False
            )
    bandwidth = read_bandwidth()
    if peers:
        jax.clear_caches()
        command = [sys.executable, "-m", "benchmarks.peers", peers, *map(str, lengths)]
        listing = subprocess.run(command, capture_output=True, text=True)
        if listing.returncode:
            sys.exit(f"the peers could not be timed:\n{listing.stderr[-2000:]}")
        results += [
            json.loads(line) for line in listing.stdout.splitlines() if line.startswith("{")
        ]
    return dict(read_bytes_per_second=bandwidth, results=results, cases=cases)


def table(record):
    yield (
        f"{record['device']}, JAX {record['jax']}, read bandwidth "
        f"{record['read_bytes_per_second'] / 1e12:.2f} TB/s"
    )
    yield (
        "| case | H | B | length | implementation | us | TB/s of useful bytes | of read bandwidth |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for r in record["results"]:
        rate = r["useful_bytes"] / r["microseconds"] * 1e6
        yield (
            f"| {r['name']} | {r['heads']} | {r['batch']} | {r['length']} | {r['implementation']} "
            f"| {r['microseconds']:.1f} "
            f"| {rate / 1e12:.2f} | {100 * rate / record['read_bytes_per_second']:.0f} % |"
        )

    yield report.decode_cases_table(record)


def draw(record, out):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    results = record["results"]
    by = lambda **want: [r for r in results if all(r[k] == v for k, v in want.items())]
    for figure, heads in (("5", 32), ("7", 16), ("8", 48)):
        batches = sorted({r["batch"] for r in by(name="TPA 16,1,1", heads=heads)})
        if not batches:
            continue
        _, axes = plt.subplots(
            1, len(batches), figsize=(4 * len(batches), 4), sharey=True, squeeze=False
        )
        for axis, batch in zip(axes[0], batches):
            for label in dict.fromkeys(
                (r["name"], r["implementation"]) for r in by(heads=heads, batch=batch)
            ):
                points = by(heads=heads, batch=batch, name=label[0], implementation=label[1])
                x, y = [[r[key] for r in points] for key in ("length", "microseconds")]
                axis.loglog(x, y, "o-", base=2, label=", ".join(label))
            axis.set(title=f"batch {batch}", xlabel="cached tokens")
            axis.grid(alpha=0.3)
        axes[0][0].set_ylabel("microseconds")
        axes[0][0].legend(fontsize=8)
        plt.tight_layout()
        plt.savefig(out / f"decode_figure_{figure}.png", dpi=120)
        plt.close()
    _, axis = plt.subplots(figsize=(7, 4.5))
    for label in dict.fromkeys((r["name"], r["implementation"]) for r in results):
        points = by(name=label[0], implementation=label[1])
        rates = [r["useful_bytes"] / r["microseconds"] / 1e6 for r in points]
        axis.semilogx(
            [r["useful_bytes"] for r in points],
            rates,
            "o",
            base=2,
            label=", ".join(label),
            markersize=4,
        )
    axis.axhline(
        record["read_bytes_per_second"] / 1e12,
        color="black",
        linestyle=":",
        label="reading, measured",
    )
    axis.set(xlabel="bytes of cache", ylabel="TB/s", title=record["device"])
    axis.legend(fontsize=7)
    plt.tight_layout()
    plt.savefig(out / "decode_roofline.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few sizes only")
    parser.add_argument(
        "--peers", metavar="DIR", help="folder with FlashAttention-3's and FlashMLA's libraries"
    )
    add_arguments(parser)
    args = parser.parse_args()
    record = provenance("benchmarks.decode", jax.devices()[0].device_kind, args.commit) | measure(
        args.quick, args.peers
    )
    write(args.out, "decode", record)
    print("\n".join(table(record)))
    draw(record, args.out)


if __name__ == "__main__":
    main()
