"""Which tokens see each other: masks of segments, and of the chunks of a split sequence."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Segments(NamedTuple):
    """Segment ids where several continuations share a context.

    A token sees the tokens whose own segment is its own segment or its context. The tokens of the
    context itself have own = context.
    """

    own: Int[Array, "B _"]
    context: Int[Array, "B _"]


def seen_segments(
    segment_ids: Int[Array, "B S"] | Segments, queries: Int[Array, "B T"] | Segments | None = None
) -> Bool[Array, "B 1 T S"]:
    """Whether each query's token sees each key's token: its own segment's and its context's.

    Args:
      segment_ids: the segments of the keys.
      queries: the segments of the queries; default those of the keys.
    """
    queries = segment_ids if queries is None else queries
    own, context = queries if isinstance(queries, Segments) else (queries, queries)
    key = (segment_ids.own if isinstance(segment_ids, Segments) else segment_ids)[:, None, None, :]
    return (own[:, None, :, None] == key) | (context[:, None, :, None] == key)


class Piece(NamedTuple):
    """Queries that attend under one mask.

    Attributes:
      queries: which of them.
      keys: how many of the keys, from the first, they can see.
      mask: which of these keys they see, [B or 1, 1, T, S]; None: all.
      causal: whether the causal mask applies too.
    """

    queries: slice
    keys: int
    mask: Bool[Array, "#B 1 T S"] | None
    causal: bool


def pieces(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S G D"],
    segment_ids: Int[Array, "B S"] | Segments | None,
    chunks: tuple[Int[Array, ""], Int[Array, ""]] | None,
) -> Iterator[Piece]:
    """The queries in pieces that attention under a mask takes.

    Without chunks that is one piece. With chunks it is two: the earlier chunk sees at most the
    first half of the sequence, the later one all of it; shapes must be the same on all devices.
    Over s devices (2s chunks) those are s + 2s products of chunks, of which 2s are seen.
    """
    if chunks is None:
        mask = None if segment_ids is None else seen_segments(segment_ids)
        yield Piece(slice(None), key.shape[1], mask, causal=True)
        return
    length = query.shape[1] // 2
    for half, (number, keys) in enumerate(
        zip(chunks, (key.shape[1] // 2, key.shape[1]), strict=True)
    ):
        position = number * length + jnp.arange(length)
        mask = (position[:, None] >= jnp.arange(keys))[None, None]
        if segment_ids is not None:
            own, seen = (
                jax.tree.map(
                    lambda x, start=number * length: jax.lax.dynamic_slice_in_dim(
                        x, start, length, axis=1
                    ),
                    segment_ids,
                ),
                jax.tree.map(lambda x, n=keys: x[:, :n], segment_ids),
            )
            mask = mask & seen_segments(seen, own)
        yield Piece(slice(half * length, (half + 1) * length), keys, mask, causal=False)
