"""Every tile has one block, and no block more than its share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_kernels.decode import work_split
from pallas_kernels.decode.work_split import WorkSplit, block_of, first_tile, shares


@pytest.mark.parametrize("blocks", [1, 3, 264])
def test_tiles_are_divided_evenly(blocks):
    tiles = np.arange(40000)

    @jax.jit
    def divide(total):
        share, longer = shares(total, blocks)
        return first_tile(jnp.arange(blocks + 1), total, share, longer), block_of(
            tiles, share, longer
        )

    for total in [
        0,
        1,
        2,
        blocks - 1,
        blocks,
        blocks + 1,
        3 * blocks // 2,
        2 * blocks - 1,
        8192,
        32768,
        39999,
    ]:
        starts, of = map(np.asarray, divide(total))
        assert starts[0] == 0 and starts[-1] == total
        assert (np.diff(starts) >= 0).all() and np.diff(starts).max() <= -(-total // blocks)
        np.testing.assert_array_equal(
            of[:total], np.searchsorted(starts, tiles[:total], side="right") - 1
        )


@pytest.fixture
def warp(monkeypatch):
    """A warp's 32 lanes as the elements of an array."""
    over_lanes = {"add": jnp.sum, "max": jnp.max}
    monkeypatch.setattr(work_split, "lane", lambda: jnp.arange(32))
    monkeypatch.setattr(work_split, "warp_reduce", lambda op, x: over_lanes[op](x))
    monkeypatch.setattr(work_split, "warp_scan", jnp.cumsum)

    def fori_loop(start, stop, step, carry):  # in which a lane's number may become all lanes'
        for i in range(start, stop):
            carry = step(i, carry)
        return carry

    monkeypatch.setattr(lax, "fori_loop", fori_loop)


@pytest.mark.usefixtures("warp")
@pytest.mark.parametrize(
    "lengths",
    [
        [1],
        [130],
        [64, 65, 0, 1, 63, 128],
        [0, 0, 7],
        [-3, 500, 5],  # as 0, and as the capacity
        [*range(0, 200, 5)],  # more sequences than a warp has lanes
    ],
)
def test_every_tile_of_every_sequence_is_found(lengths):
    tokens, capacity = 64, 300
    split = WorkSplit(jnp.array(lengths), len(lengths), capacity, tokens, blocks=5)
    held = [min(max(n, 0), capacity) for n in lengths]
    tiles = [(b, t) for b, n in enumerate(held) for t in range(-(-n // tokens))]
    assert int(split.total) == len(tiles)
    assert [int(split.length(b)) for b in range(len(held))] == held
    for number, (b, t) in enumerate(tiles):
        found, tile = split.locate(number)
        assert (int(found), int(tile)) == (b, t)
        left = -(-held[b] // tokens) - t
        if number + 1 < len(tiles):
            after, tile, left = split.after(jnp.int32(b), jnp.int32(t), jnp.int32(left))
            assert (int(after), int(tile)) == tiles[number + 1]
            assert int(left) == -(-held[int(after)] // tokens) - int(tile)
    assert [int(split.before(b)) for b in range(len(held))] == [
        sum(-(-n // tokens) for n in held[:b]) for b in range(len(held))
    ]
