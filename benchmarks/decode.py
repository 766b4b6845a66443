"""Times FlashTPA decoding on one GPU, next to plain XLA and the kernels that others publish.

    python -m benchmarks.decode [--quick] [--peers DIR] [--published DIR] [--out DIR]

Writes decode_<gpu>.json, prints its tables, and draws the paper's Figures 5, 7 and 8 and a roofline
plot. A case is one new token for each of B sequences; all lengths run inside one allocation,
compiled once. The cases outside this grid are in benchmarks/decode_cases.py.

--peers DIR times FlashAttention-3 and FlashMLA, whose libraries DIR holds (benchmarks/peers.py).
--published DIR times the Triton kernels of the paper's authors from a checkout of
github.com/tensorgi/TPA (benchmarks/published.py). Both need PyTorch.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp

from benchmarks import decode_cases, decode_plots, decode_tables, other_kernels, peers, published
from benchmarks.device_time import device_seconds, normal, read_bandwidth
from benchmarks.record import Record, nvidia_smi, parser, provenance, write
from pallas_kernels.decode import flash_tpa
from pallas_kernels.decode.cache_layout import CacheLayout, unpack

D = 64
PAPER = "TPA 16,1,1"  # R_Q, R_K, R_V of the paper's Figures 5, 7 and 8
PAPER_HEADS = (16, 32, 48)  # d_model 1024, 2048, 3072
TRAINED_HEADS = {"T6 small": 34, "T6 medium": 47, "T6 large": 61, "T6 XL": 78}
RANKS = {PAPER: (16, 1, 1)} | dict.fromkeys(TRAINED_HEADS, (6, 2, 2))
BATCHES, LENGTHS = (1, 2, 4, 8, 16), [2**i for i in range(12, 20)]
QUICK_BATCHES, QUICK_LENGTHS = (1, 16), [2**12, 2**14, 2**17, 2**19]
TRAINED_LENGTHS, QUICK_TRAINED_LENGTHS = [2**12, 2**14, 2**17], [2**17]
CACHES = 6  # that calls cycle through, so that none finds its cache in L2 unless six fit


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


def grid(quick: bool) -> list[tuple[str, int, int, list[int]]]:
    """(name, heads, batch, lengths) of every FlashTPA case."""
    lengths = QUICK_LENGTHS if quick else LENGTHS
    paper = [
        (PAPER, heads, batch, lengths)
        for heads in ((32,) if quick else PAPER_HEADS)
        for batch in (QUICK_BATCHES if quick else BATCHES)
    ]
    trained = [
        (name, heads, batch, QUICK_TRAINED_LENGTHS if quick else TRAINED_LENGTHS)
        for name, heads in TRAINED_HEADS.items()
        for batch in (1, 16)
    ]
    return paper + trained


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
        if baselines and batch * length <= 2**21:
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


def time_peers(folder: pathlib.Path, quick: bool) -> list[Record]:
    """FlashAttention-3 and FlashMLA at every head count, batch and length of the paper's grid."""
    cases = [
        case
        for name, heads, batch, lengths in grid(quick)
        if name == PAPER
        for case in peers.cases(heads, batch, lengths)
    ]
    return other_kernels.run("benchmarks.peers", str(folder), cases)


def time_published(folder: pathlib.Path, quick: bool) -> list[Record]:
    """The authors' kernels: H = 32 of the paper's grid, and the models that the paper trains."""
    cases = [
        case
        for name, heads, batch, lengths in grid(quick)
        if name != PAPER or heads == 32
        for case in published.cases(name, heads, RANKS[name], batch, lengths)
    ]
    published.compile_ahead(str(folder), cases)
    return other_kernels.run("benchmarks.published", str(folder), cases)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="a few sizes only")
    arguments.add_argument(
        "--peers", type=pathlib.Path, metavar="DIR", help="libraries of FlashAttention-3, FlashMLA"
    )
    arguments.add_argument(
        "--published", type=pathlib.Path, metavar="DIR", help="a checkout of tensorgi/TPA"
    )
    args = arguments.parse_args()
    if nvidia_smi("name") is None:
        arguments.error("this needs an NVIDIA GPU")
    # before JAX takes most of the GPU's memory
    others = time_peers(args.peers, args.quick) if args.peers else []
    others += time_published(args.published, args.quick) if args.published else []

    record = provenance("benchmarks.decode", jax.devices()[0].device_kind, args.commit)
    if args.published:
        record["published"] = published.checkout(args.published)
    record["cases"] = decode_cases.measure()
    record["results"] = []
    for name, heads, batch, lengths in grid(args.quick):
        baselines = not args.quick and name == PAPER and heads == 32
        record["results"] += time_tpa(name, heads, batch, lengths, baselines=baselines)
    record["results"] += others
    record["read_bytes_per_second"] = read_bandwidth()
    write(args.out, "decode", record)
    print("\n".join(decode_tables.every_result(record)))
    print(decode_tables.cases(record))
    decode_plots.draw(record, args.out)


if __name__ == "__main__":
    main()
