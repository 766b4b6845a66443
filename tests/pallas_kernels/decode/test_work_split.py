"""Every tile has one block, and no block more than its share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.decode.work_split import block_of, first_tile, shares


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
