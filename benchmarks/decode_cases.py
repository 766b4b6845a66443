"""What benchmarks.decode times beside its grid: ragged batches, several new tokens, appending, the
paper's smaller caches, and how near short calls come to a pair of kernels that do nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks.device_time import device_seconds
from pallas_kernels.decode import cache_layout, flash_tpa
from pallas_kernels.decode.cache_layout import CacheLayout, Rotation

PAPER, XL = CacheLayout(32, 1, 1, 64, 64), CacheLayout(78, 2, 2, 64, 64)
RANKS = {PAPER: 16, XL: 6}
NAMES = {PAPER: "R = 16, 1, 1, H = 32", XL: "R = 6, 2, 2, H = 78"}
COPIES = 4  # of a cache, taken in turn


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def make(layout, batch, capacity, new_tokens=1, rank_q=6):
    """(query, caches, what a decode needs beside them)."""
    query = (
        normal(0, batch, new_tokens, rank_q, layout.heads),
        normal(1, batch, new_tokens, rank_q, layout.dim_k),
    )
    options = {}
    if not layout.stores_a:
        options["a"] = (
            normal(2, layout.rank_k, layout.heads),
            normal(3, layout.rank_v, layout.heads),
        )
    if not layout.stores_b:
        options["b"] = normal(4, capacity, layout.b_width)
    return query, [normal(5 + i, batch, capacity, layout.width) for i in range(COPIES)], options


def times(layout, batch, capacity, lengths, new_tokens=1, rank_q=6, **static):
    """Seconds of a call for each array of lengths, {name: seconds}."""
    query, caches, options = make(layout, batch, capacity, new_tokens, rank_q)
    decode = jax.jit(functools.partial(flash_tpa.decode, layout=layout, **static))
    arrays = {name: jnp.asarray(x, jnp.int32) for name, x in lengths.items()}
    return device_seconds(
        {
            name: [lambda c=c, x=x: decode(query, c, x, **options) for c in caches * 2]
            for name, x in arrays.items()
        }
    )


def ragged():
    """16 sequences of 1 k to 128 k tokens, beside 16 that all have their mean length."""
    lengths = np.geomspace(2**10, 2**17, 16).astype(int) // 64 * 64
    mean = int(lengths.sum()) // 16
    for layout in (PAPER, XL):
        seconds = times(
            layout, 16, 2**17, {"ragged": lengths, "even": np.full(16, mean)}, rank_q=RANKS[layout]
        )
        for name, what in (
            ("ragged", "16 sequences, 2^10 to 2^17 tokens"),
            ("even", f"16 sequences of {mean} tokens"),
        ):
            size = 2 * int(lengths.sum()) * layout.useful_width
            yield dict(case=f"{NAMES[layout]}: {what}", seconds=seconds[name], useful_bytes=size)


def new_tokens():
    for layout, some in ((PAPER, (1, 2, 4, 8)), (XL, (1, 4))):
        for new in some:
            seconds = times(layout, 16, 2**16, {0: np.full(16, 2**16)}, new, RANKS[layout])[0]
            what = f"{NAMES[layout]}: N = {new} new tokens, 16 sequences of 2^16"
            yield dict(
                case=what, seconds=seconds, useful_bytes=2 * 16 * 2**16 * layout.useful_width
            )


def appending():
    """One token to each of 16 sequences, into a donated cache."""
    for layout in (PAPER, XL):
        caches = [normal(i, 16, 2**14, layout.width) for i in range(COPIES)]
        new, lengths = normal(9, 16, 1, layout.width), jnp.arange(16, dtype=jnp.int32) * 1000
        append = jax.jit(cache_layout.append, donate_argnums=0)

        def call(i, caches=caches, new=new, lengths=lengths, append=append):
            caches[i] = append(caches[i], new, lengths)
            return caches[i]

        addresses = {c.unsafe_buffer_pointer() for c in caches}
        seconds = device_seconds({0: [functools.partial(call, i) for i in range(COPIES)]})[0]
        assert {c.unsafe_buffer_pointer() for c in caches} == addresses, "appending copied a cache"
        yield dict(
            case=f"{NAMES[layout]}: appending a token to each of 16 sequences",
            seconds=seconds,
            useful_bytes=0,
        )


def variants():
    """Appendix I on H = 47, R = 6, 2, 2: what a smaller cache saves."""
    sizes = dict(heads=47, rank_k=2, rank_v=2, dim_k=64, dim_v=64)
    turn = Rotation(
        tuple(
            float(x) for x in np.float32(10000.0) ** (-np.arange(0, 64, 2, dtype=np.float32) / 64)
        )
    )
    kinds = {
        "all factors": (CacheLayout(**sizes), {}),
        "shared B, rotated when read": (CacheLayout(**sizes, shared_b=True), dict(rotation=turn)),
        "non-contextual B": (CacheLayout(**sizes, stores_b=False), {}),
        "non-contextual A": (CacheLayout(**sizes, stores_a=False), {}),
    }
    for name, (layout, static) in kinds.items():
        seconds = times(layout, 16, 2**17, {0: np.full(16, 2**17)}, **static)[0]
        what = f"R = 6, 2, 2, H = 47, {name}: 16 sequences of 2^17 tokens"
        yield dict(case=what, seconds=seconds, useful_bytes=2 * 16 * 2**17 * layout.useful_width)


def short():
    """Short calls beside a pair of kernels of the same sizes that do nothing, the second launched
    while the first runs.
    """
    pair = empty_pair(blocks=2 * 132, merging=128)
    numbers = [jnp.full((1,), i, jnp.int32) for i in range(8)]
    seconds = device_seconds({0: [functools.partial(pair, x) for x in numbers]})[0]
    yield dict(case="two kernels that do nothing", seconds=seconds, useful_bytes=0)
    for batch in (1, 16):
        lengths = {length: np.full(batch, length) for length in (64, 2**10)}
        for length, seconds in times(PAPER, batch, 2**12, lengths, rank_q=16).items():
            size = 2 * batch * length * PAPER.useful_width
            yield dict(
                case=f"{NAMES[PAPER]}: B = {batch}, {length} tokens",
                seconds=seconds,
                useful_bytes=size,
            )


def empty_pair(blocks, merging):
    def first(x, out, _):
        plgpu.griddepcontrol_wait()
        plgpu.griddepcontrol_launch_dependents()

        @pl.when(jax.lax.axis_index("block") == 0)
        def _():
            out[0] = x[0]

    def second(x, out):
        plgpu.griddepcontrol_launch_dependents()
        plgpu.griddepcontrol_wait()

        @pl.when(jax.lax.axis_index("block") == 0)
        def _():
            out[0] = x[0] + 1

    def kernel(body, grid, name, **options):
        return plgpu.kernel(
            body,
            out_type=jax.ShapeDtypeStruct((1,), jnp.int32),
            grid=(grid,),
            grid_names=("block",),
            compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
            kernel_name=name,
            **options,
        )

    ring = [plgpu.SMEM((96 * 1024,), jnp.int8)]
    return jax.jit(
        lambda x: kernel(second, merging, "empty_second")(
            kernel(first, blocks, "empty_first", scratch_types=ring)(x)
        )
    )


def measure():
    found = []
    for group in (ragged, new_tokens, appending, variants, short):
        for case in group():
            seconds = case.pop("seconds")
            found.append(dict(group=group.__name__, **case, microseconds=seconds * 1e6))
            print(f"{found[-1]['case']}: {seconds * 1e6:.1f} us", flush=True)
    return found
