"""Times FlashTPA decoding on one GPU, next to plain XLA and the kernels that others publish.

    python -m benchmarks.decode [--quick] [--peers DIR] [--published DIR] [--heads H ...]

Writes decode_<gpu>.json, prints its tables, and draws the paper's Figures 5, 7 and 8 and a roofline
plot. A case is one new token for each of B sequences; all lengths run inside one allocation,
compiled once. The cases outside this grid are in benchmarks/decode_cases.py.

--peers DIR times FlashAttention-3 and FlashMLA, whose libraries DIR holds (benchmarks/peers.py).
--published DIR times the Triton kernels of the paper's authors from a checkout of
github.com/tensorgi/TPA (benchmarks/published.py). Both need PyTorch.

All of it takes a quarter of an hour. In shorter runs, --heads times some of the paper's head counts
only, and --update adds what was timed to a record of the same device and commit.
"""

import functools
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from benchmarks import (
    decode_cases,
    decode_plots,
    decode_tables,
    other_kernels,
    peers,
    plots,
    published,
)
from benchmarks.decode_grid import (
    COMPILED_LENGTHS,
    PAPER,
    PAPER_HEADS,
    QUICK_TRAINED_LENGTHS,
    RANKS,
    D,
    grid,
)
from benchmarks.device_time import device_seconds, normal, read_bandwidth
from benchmarks.record import Record, nvidia_smi, parser, provenance, read, write
from pallas_kernels.decode import flash_tpa
from pallas_kernels.decode.cache_layout import CacheLayout, unpack

CACHES = 6  # that calls cycle through, so that none finds its cache in L2 unless six fit
CASE = ("name", "implementation", "heads", "batch", "length")  # what names a result


@functools.partial(jax.jit, static_argnames="layout")
def algorithm_1(query, rows, lengths, layout):
    """The paper's Algorithm 1 as XLA compiles it."""
    a_k, b_k, a_v, b_v = unpack(layout, rows)
    (a_q, b_q), M = query, rows.shape[1]
    q = jnp.einsum("bnrh,bnrd->bnhd", a_q, b_q) / a_q.shape[2]
    logits = jnp.einsum("bmrh,bmrd,bnhd->bnhm", a_k, b_k, q, preferred_element_type=jnp.float32)
    logits *= layout.dim_k**-0.5 / layout.rank_k
    visible = (jnp.arange(M) < lengths[:, None])[:, None, None]
    p = jax.nn.softmax(jnp.where(visible, logits, -jnp.inf)).astype(rows.dtype)
    return jnp.einsum("bnhm,bmrh,bmre->bnhe", p, a_v, b_v) / layout.rank_v


def time_tpa(
    name: str, heads: int, batch: int, lengths: list[int], *, baselines: bool
) -> list[Record]:
    """FlashTPA's times and, as baselines, those of the Triton kernel and of plain XLA."""
    rank_q, rank_k, rank_v = RANKS[name]
    layout = CacheLayout(heads, rank_k, rank_v, D, D)
    query = normal(0, batch, 1, rank_q, heads), normal(1, batch, 1, rank_q, D)
    caches = [normal(2 + i, batch, max(lengths), layout.width) for i in range(CACHES)]
    filled = {length: jnp.full((batch,), length, jnp.int32) for length in lengths}
    seconds = {}

    for kernel in ("mosaic_gpu", "triton") if baselines else ("mosaic_gpu",):
        decode = jax.jit(functools.partial(flash_tpa.decode, layout=layout, kernel=kernel))
        calls = {
            (kernel, length): [lambda c=c, x=x, f=decode: f(query, c, x) for c in caches * 2]
            for length, x in filled.items()
        }
        seconds |= device_seconds(calls)
    for length, x in filled.items():
        # XLA's time follows the allocation, so each length has a shape of its own
        if baselines and length in COMPILED_LENGTHS and batch * length <= 2**21:
            cut = [c[:, :length] for c in caches[:3]]
            calls = [lambda c=c, x=x: algorithm_1(query, c, x, layout) for c in cut * 2]
            seconds |= device_seconds({("xla", length): calls})
    results = [
        {
            "name": name,
            "implementation": implementation,
            "heads": heads,
            "batch": batch,
            "length": length,
            "microseconds": s * 1e6,
            "useful_bytes": 2 * batch * length * layout.useful_width,
            "cache_bytes": 2 * batch * length * layout.width,
        }
        for (implementation, length), s in seconds.items()
    ]
    for r in results:
        took = f"{r['implementation']} {r['microseconds']:.1f} us"
        print(f"{name}, B {batch}, {r['length']}: {took}", flush=True)
    return results


def time_peers(folder: pathlib.Path, sizes: Sequence[tuple]) -> list[Record]:
    """FlashAttention-3 and FlashMLA at every head count, batch and length of the paper's grid."""
    cases = [
        case
        for name, heads, batch, lengths in sizes
        if name == PAPER
        for case in peers.cases(heads, batch, lengths)
    ]
    return other_kernels.run("benchmarks.peers", str(folder), cases)


def time_published(folder: pathlib.Path, sizes: Sequence[tuple]) -> list[Record]:
    """The authors' kernels: H = 32 of the paper's grid, and the models that the paper trains."""
    cases = []
    for name, heads, batch, lengths in sizes:
        if name != PAPER or heads == 32:
            some = set(lengths) & set(COMPILED_LENGTHS if name == PAPER else QUICK_TRAINED_LENGTHS)
            cases += published.cases(name, heads, RANKS[name], batch, sorted(some))
    published.compile_ahead(str(folder), cases)
    return other_kernels.run("benchmarks.published", str(folder), cases)


def updated(old: Record, new: Record) -> Record:
    """The old record with what the new one adds.

    Raises:
        SystemExit: The two are not of one device, commit and day.
    """
    for key in ("device", "commit", "date", "jax"):
        if old[key] != new[key]:
            sys.exit(f"--update: the record's {key} is {old[key]}, this run's is {new[key]}")
    again = {tuple(r[k] for k in CASE) for r in new["results"]}
    kept = [r for r in old["results"] if tuple(r[k] for k in CASE) not in again]
    return (
        old
        | {key: new[key] for key in ("published",) if key in new}
        | {
            "command": f"{old['command']} && {new['command']}",
            "cases": new["cases"] or old["cases"],
            "results": kept + new["results"],
        }
    )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="a few sizes only")
    arguments.add_argument(
        "--peers", type=pathlib.Path, metavar="DIR", help="libraries of FlashAttention-3, FlashMLA"
    )
    arguments.add_argument(
        "--published", type=pathlib.Path, metavar="DIR", help="a checkout of tensorgi/TPA"
    )
    arguments.add_argument(
        "--heads",
        type=int,
        nargs="+",
        choices=PAPER_HEADS,
        default=list(PAPER_HEADS),
        help="head counts of the paper's figures; the trained models and cases come with 32",
    )
    arguments.add_argument("--update", type=pathlib.Path, metavar="FILE", help="a record to add to")
    args = arguments.parse_args()
    if nvidia_smi("name") is None:
        arguments.error("this needs an NVIDIA GPU")
    sizes = grid(args.quick, args.heads)
    # before JAX takes most of the GPU's memory
    others = time_peers(args.peers, sizes) if args.peers else []
    others += time_published(args.published, sizes) if args.published else []

    record = provenance("benchmarks.decode", jax.devices()[0].device_kind, args.commit)
    if args.published:
        record["published"] = published.checkout(args.published)
    record["cases"] = decode_cases.measure() if 32 in args.heads else []
    record["results"] = []
    for name, heads, batch, lengths in sizes:
        baselines = not args.quick and name == PAPER and heads == 32
        record["results"] += time_tpa(name, heads, batch, lengths, baselines=baselines)
    record["results"] += others
    record["read_bytes_per_second"] = read_bandwidth()
    if args.update:
        record = updated(read(args.update), record)
    write(args.out, "decode", record)
    print("\n".join(decode_tables.every_result(record)))
    print(decode_tables.cases(record))
    plots.draw(decode_plots.draw, record, args.out)


if __name__ == "__main__":
    main()
