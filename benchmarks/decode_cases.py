"""The cases of benchmarks.decode outside its grid.

Ragged batches, several new tokens, appending, the paper's smaller caches, and how close short calls
come to a pair of kernels that do nothing.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.device_time import device_seconds, normal
from benchmarks.empty_kernels import empty_pair
from benchmarks.record import Record
from pallas_kernels.decode import cache_layout, flash_tpa
from pallas_kernels.decode.cache_layout import CacheLayout, Rotation

PAPER, XL = CacheLayout(32, 1, 1, 64, 64), CacheLayout(78, 2, 2, 64, 64)
RANKS = {PAPER: 16, XL: 6}
NAMES = {PAPER: "R = 16, 1, 1, H = 32", XL: "R = 6, 2, 2, H = 78"}
CACHES = 4  # that calls cycle through
# name, seconds of a call, bytes of factors that it reads
Case = tuple[str, float, int]


def make(
    layout: CacheLayout, batch: int, capacity: int, new_tokens: int, rank_q: int
) -> tuple[tuple[jax.Array, jax.Array], list[jax.Array], dict[str, Any]]:
    """The query, the caches, and the factors that the cache does not hold."""
    query = (
        normal(0, batch, new_tokens, rank_q, layout.heads),
        normal(1, batch, new_tokens, rank_q, layout.dim_k),
    )
    fixed: dict[str, Any] = {}
    if not layout.stores_a:
        fixed["a"] = (
            normal(2, layout.rank_k, layout.heads),
            normal(3, layout.rank_v, layout.heads),
        )
    if not layout.stores_b:
        fixed["b"] = normal(4, capacity, layout.b_width)
    return query, [normal(5 + i, batch, capacity, layout.width) for i in range(CACHES)], fixed


def times(
    layout: CacheLayout,
    capacity: int,
    lengths: dict[str, np.ndarray],
    new_tokens: int = 1,
    rank_q: int = 6,
    **static: Any,
) -> dict[str, float]:
    """Seconds of a call for each of several arrays of lengths, by their names."""
    batch = len(next(iter(lengths.values())))
    query, caches, fixed = make(layout, batch, capacity, new_tokens, rank_q)
    decode = jax.jit(functools.partial(flash_tpa.decode, layout=layout, **static))
    calls = {}
    for name, values in lengths.items():
        x = jnp.asarray(values, jnp.int32)
        calls[name] = [lambda c=c, x=x: decode(query, c, x, **fixed) for c in caches * 2]
    return device_seconds(calls)


def full(batch: int, length: int) -> dict[str, np.ndarray]:
    """Sequences that all have one length."""
    return {"full": np.full(batch, length)}


def bytes_of(layout: CacheLayout, tokens: int) -> int:
    """Bytes of the factors of so many tokens, without padding."""
    return 2 * tokens * layout.useful_width


def ragged() -> Iterator[Case]:
    """16 sequences of 1 k to 128 k tokens, and 16 that all have their mean length."""
    lengths = np.geomspace(2**10, 2**17, 16).astype(int) // 64 * 64
    total = int(lengths.sum())
    mean = total // 16
    for layout in (PAPER, XL):
        both = {"ragged": lengths, "even": np.full(16, mean)}
        seconds = times(layout, 2**17, both, rank_q=RANKS[layout])
        for name, what in (
            ("ragged", "16 sequences, 2^10 to 2^17 tokens"),
            ("even", f"16 sequences of {mean} tokens"),
        ):
            yield f"{NAMES[layout]}: {what}", seconds[name], bytes_of(layout, total)


def new_tokens() -> Iterator[Case]:
    """Several new tokens for each sequence, as in speculative decoding."""
    for layout, counts in ((PAPER, (1, 2, 4, 8)), (XL, (1, 4))):
        for new in counts:
            seconds = times(layout, 2**16, full(16, 2**16), new, RANKS[layout])["full"]
            what = f"{NAMES[layout]}: N = {new} new tokens, 16 sequences of 2^16"
            yield what, seconds, bytes_of(layout, 16 * 2**16)


def appending() -> Iterator[Case]:
    """One token to each of 16 sequences, into a donated cache."""
    for layout in (PAPER, XL):
        caches = [normal(i, 16, 2**14, layout.width) for i in range(CACHES)]
        new, lengths = normal(9, 16, 1, layout.width), jnp.arange(16, dtype=jnp.int32) * 1000
        append = jax.jit(cache_layout.append, donate_argnums=0)

        def call(i, caches=caches, new=new, lengths=lengths, append=append):
            caches[i] = append(caches[i], new, lengths)
            return caches[i]

        addresses = {c.unsafe_buffer_pointer() for c in caches}
        calls = [functools.partial(call, i) for i in range(CACHES)]
        seconds = device_seconds({"append": calls})["append"]
        assert {c.unsafe_buffer_pointer() for c in caches} == addresses, "appending copied a cache"
        yield f"{NAMES[layout]}: appending a token to each of 16 sequences", seconds, 0


def variants() -> Iterator[Case]:
    """Appendix I on H = 47, R = 6, 2, 2: what a smaller cache saves."""
    of_size = functools.partial(CacheLayout, heads=47, rank_k=2, rank_v=2, dim_k=64, dim_v=64)
    angles = np.float32(10000.0) ** (-np.arange(0, 64, 2, dtype=np.float32) / 64)
    rotation = {"rotation": Rotation(tuple(map(float, angles)))}
    kinds = {
        "all factors": (of_size(), {}),
        "shared B, rotated when read": (of_size(shared_b=True), rotation),
        "non-contextual B": (of_size(stores_b=False), {}),
        "non-contextual A": (of_size(stores_a=False), {}),
    }
    for name, (layout, static) in kinds.items():
        seconds = times(layout, 2**17, full(16, 2**17), **static)["full"]
        what = f"R = 6, 2, 2, H = 47, {name}: 16 sequences of 2^17 tokens"
        yield what, seconds, bytes_of(layout, 16 * 2**17)


def short() -> Iterator[Case]:
    """Short calls, and a pair of kernels of the same sizes that do nothing.

    As in decoding, the second kernel is launched while the first runs.
    """
    pair = empty_pair(blocks=2 * 132, merging=128)
    numbers = [jnp.full((1,), i, jnp.int32) for i in range(8)]
    seconds = device_seconds({"pair": [functools.partial(pair, x) for x in numbers]})["pair"]
    yield "two kernels that do nothing", seconds, 0
    for batch in (1, 16):
        lengths = {str(length): np.full(batch, length) for length in (64, 2**10)}
        for length, seconds in times(PAPER, 2**12, lengths, rank_q=16).items():
            what = f"{NAMES[PAPER]}: B = {batch}, {length} tokens"
            yield what, seconds, bytes_of(PAPER, batch * int(length))


def measure() -> list[Record]:
    """Times every case and prints it."""
    found = []
    for group in (ragged, new_tokens, appending, variants, short):
        for case, seconds, size in group():
            found.append(
                {
                    "group": group.__name__,
                    "case": case,
                    "useful_bytes": size,
                    "microseconds": seconds * 1e6,
                }
            )
            print(f"{case}: {seconds * 1e6:.1f} us", flush=True)
    return found
