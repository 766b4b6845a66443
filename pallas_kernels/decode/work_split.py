"""Divides the tokens of sequences of different lengths among the thread blocks of a kernel.

The GPU computes the division from the lengths, so that lengths are data and nothing recompiles.
"""

import jax.numpy as jnp
from jax import lax

from pallas_kernels.hopper.warps import lane, warp_reduce, warp_scan


def shares(total, blocks):
    """Returns (share, longer): the first `longer` blocks have share + 1 tiles each, the others
    `share` tiles each, until no tile is left.
    """
    share, rest = lax.div(total, blocks), lax.rem(total, blocks)
    return share, jnp.where(2 * rest >= blocks, blocks, rest)


def first_tile(block, total, share, longer):
    """The first tile of a block; `total` where the block has none."""
    return jnp.minimum(block * share + jnp.minimum(block, longer), total)


def block_of(tile, share, longer):
    """The block that has this tile."""
    past_longer = tile - longer * (share + 1)
    return jnp.where(
        past_longer < 0,
        lax.div(tile, share + 1),
        longer + lax.div(past_longer, jnp.maximum(share, 1)),
    )


class WorkSplit:
    """Divides the tiles of all sequences, laid end to end, evenly among `blocks`.

    Block g has the tiles [start(g), start(g + 1)). Blocks differ by one tile at most. Where most
    blocks would have the longer share, all of them take it and the last ones take what is left:
    then fewer partial results are merged, and sooner. A block g that touches a sequence b keeps its
    partial result in slot g + b. No slot is used twice: from one pair (g, b) to the next along the
    tiles, neither number falls and one of them rises. Every warp computes the division for itself,
    one sequence per lane.
    """

    def __init__(self, lengths_ref, batch, capacity, tokens, blocks):
        self.lengths_ref, self.batch = lengths_ref, batch
        self.capacity, self.tokens = capacity, tokens
        self.lane = lane()
        self.total = self.before(batch)
        self.share, self.longer = shares(self.total, blocks)

    def start(self, block):
        return first_tile(block, self.total, self.share, self.longer)

    def block(self, tile):
        """The block that has this tile."""
        return block_of(tile, self.share, self.longer)

    def length(self, b):
        return jnp.minimum(jnp.maximum(self.lengths_ref[b], 0), self.capacity)

    def tiles(self, b):
        return lax.div(self.length(b) + (self.tokens - 1), self.tokens)

    def _fold(self, step, carry):
        """Folds step(this lane's sequence, its tiles, carry) over all sequences, 32 at a time."""

        def chunk(c, carry):
            b = c * 32 + self.lane
            return step(
                b, jnp.where(b < self.batch, self.tiles(jnp.minimum(b, self.batch - 1)), 0), carry
            )

        if (chunks := -(-self.batch // 32)) == 1:
            return chunk(0, carry)
        return lax.fori_loop(0, chunks, chunk, carry)

    def before(self, sequence):
        """The number of tiles in the sequences before this one."""
        if self.batch == 1:
            return jnp.where(sequence > 0, self.tiles(0), 0)
        mine = self._fold(
            lambda b, tiles, total: total + jnp.where(b < sequence, tiles, 0), jnp.int32(0)
        )
        return warp_reduce("add", mine)

    def locate(self, tile):
        """The sequence that holds this tile, and the tile's number in it."""
        if self.batch == 1:
            return jnp.int32(0), tile

        def step(_, tiles, carry):
            end, b, first = carry
            ends = end + warp_scan(tiles)
            past = ends <= tile
            b = b + warp_reduce("add", past.astype(jnp.int32))
            first = jnp.maximum(first, warp_reduce("max", jnp.where(past, ends, 0)))
            return warp_reduce("max", ends), b, first

        _, b, first = self._fold(step, (jnp.int32(0),) * 3)
        return jnp.minimum(b, self.batch - 1), tile - first

    def next_sequence(self, b):
        """The next sequence with tokens."""
        b = jnp.minimum(b + 1, self.batch - 1)

        def skip(carry):
            b, _ = carry
            b = b + 1
            return b, self.tiles(b)

        return lax.while_loop(
            lambda c: (c[1] == 0) & (c[0] < self.batch - 1), skip, (b, self.tiles(b))
        )

    def after(self, b, t, left):
        """The tile that follows tile t of sequence b, as (sequence, tile, tiles left from it on).

        left: tiles left in sequence b from t on.
        """

        def next_sequence(b, t, left):
            b, tiles = self.next_sequence(b)
            return b, jnp.int32(0), tiles

        return lax.cond(
            left == 1, next_sequence, lambda b, t, left: (b, t + 1, left - 1), b, t, left
        )
