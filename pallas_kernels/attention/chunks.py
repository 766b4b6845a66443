"""Where queries stand in a sequence that devices split: each has two chunks of it, not side by
side.

Blocks of queries and of keys are of one size, and a chunk is a whole number of them. A block of
queries sees the keys' blocks up to the one at its own place.
"""

import jax.numpy as jnp


class Chunks:
    """numbers: a ref of the numbers of the two chunks, the earlier first; None: the queries are the
    whole sequence.

    blocks: of both chunks together.
    """

    def __init__(self, numbers, blocks: int):
        self._length = blocks // 2
        self._starts = (
            None if numbers is None else [numbers[half] * self._length for half in range(2)]
        )

    def place(self, i):
        """The block of the sequence that block i of the queries is."""
        if self._starts is None:
            return i
        first, second = self._starts
        return i + jnp.where(i < self._length, first, second - self._length)

    def first(self, j):
        """The first block of queries that sees block j of the keys; all behind it do too."""
        if self._starts is None:
            return j
        earlier, later = (
            jnp.maximum(jnp.minimum(j - start, self._length), 0) for start in self._starts
        )
        return earlier + later  # of either chunk, what does not see them
