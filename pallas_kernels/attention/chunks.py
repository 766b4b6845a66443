"""Where queries stand in a sequence that is split over devices: each device has two chunks of it,
which need not be neighbours.

Blocks of queries and of keys have one size, and a chunk is a whole number of them. A block of
queries sees the blocks of keys up to the one at its own position.
"""

from typing import Any

import jax.numpy as jnp


class Chunks:
    """The positions of blocks of queries.

    Args:
        numbers: A ref of the numbers of the two chunks, the earlier one first; None: the queries
            are the whole sequence.
        blocks: Blocks of queries in both chunks together.
    """

    def __init__(self, numbers: Any, blocks: int):
        self._length = blocks // 2
        self._starts = (
            None if numbers is None else [numbers[half] * self._length for half in range(2)]
        )

    def position(self, i: Any) -> Any:
        """Which block of the sequence block i of the queries is."""
        if self._starts is None:
            return i
        first, second = self._starts
        return i + jnp.where(i < self._length, first, second - self._length)

    def first_to_see(self, j: Any) -> Any:
        """The first block of queries that sees block j of the keys; all after it do too."""
        if self._starts is None:
            return j
        first, second = (
            jnp.maximum(jnp.minimum(j - start, self._length), 0) for start in self._starts
        )
        return first + second  # the blocks of either chunk that do not see block j
