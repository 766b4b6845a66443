"""Where a device's queries stand in the sequence, block by block."""

import numpy as np
import pytest

from pallas_kernels.attention.chunks import Chunks


@pytest.mark.parametrize("devices, each", [(1, 3), (2, 1), (2, 4), (4, 2), (5, 3)])
def test_places_are_those_of_the_chunks_and_what_sees_a_key_comes_last(devices, each):
    for i in range(devices):
        numbers = [i, 2 * devices - 1 - i]
        blocks = np.concatenate([np.arange(n * each, (n + 1) * each) for n in numbers])
        chunks = Chunks(numbers, 2 * each)
        assert [int(chunks.position(n)) for n in range(2 * each)] == list(blocks)
        for j in range(2 * devices * each):
            assert list(range(int(chunks.first_to_see(j)), 2 * each)) == [
                n for n in range(2 * each) if blocks[n] >= j
            ]


def test_a_whole_sequence_stands_where_it_is():
    chunks = Chunks(None, 4)
    assert (
        [chunks.position(n) for n in range(4)]
        == [chunks.first_to_see(n) for n in range(4)]
        == [0, 1, 2, 3]
    )
