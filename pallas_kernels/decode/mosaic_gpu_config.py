"""Tile and pipeline sizes of FlashTPA on Hopper, and what they take of shared memory."""

import dataclasses

from pallas_kernels.decode.cache_layout import CacheLayout, round_up
from pallas_kernels.hopper.layouts import ROWS, WARP_ROWS

SHARED_MEMORY = 227 * 1024
# left free on an SM, so that a block of the combining kernel can move in early
COMBINE_SHARED_MEMORY = 4096


@dataclasses.dataclass(frozen=True)
class Config:
    """Tile and pipeline sizes.

    Args:
        tokens: Tokens of a tile.
        blocks_per_sm: Thread blocks that share an SM.
        stages: Tiles in a block's ring of shared memory.
        sms: SMs of the GPU.
    """

    tokens: int
    blocks_per_sm: int
    stages: int
    sms: int = 132


@dataclasses.dataclass(frozen=True)
class ABoxes:
    """How the A factors of a tile lie in shared memory: `count` boxes [tokens, columns], `ranks`
    ranks in each.

    `columns` is an odd number of 16-byte units, so that the 8 token rows which ldmatrix reads at
    once lie in 8 different groups of banks. What a box holds beyond its ranks is whatever follows
    in memory, and is not used.
    """

    count: int
    ranks: int
    columns: int

    @classmethod
    def of(cls, layout: CacheLayout) -> "ABoxes":
        if not layout.stores_a:
            return cls(0, 1, 0)
        ranks = layout.rank_k + layout.rank_v
        for count in range(1, ranks + 1):
            ranks_in_box = -(-ranks // count)
            columns = _odd_units(ranks_in_box * layout.padded_heads)
            if columns <= 256:  # TMA takes at most 256 numbers per axis
                return cls(count, ranks_in_box, columns)
        raise NotImplementedError(f"flash_tpa_mosaic: at most 128 heads, not {layout.shard.heads}")


def _odd_units(columns: int) -> int:
    """The next number of columns that is an odd number of 16-byte units."""
    return columns + (8 if columns // 8 % 2 == 0 else 0)


def one_copy(layout: CacheLayout, tokens: int) -> bool:
    """Whether keys and values read the same B factors from the same place: where wgmma takes both
    in chunks of 64.
    """
    return layout.shared_b and tokens >= 64


def row_blocks(new_tokens: int, heads: int) -> int:
    """The wgmmas' worth of rows that one block takes on: two at most, for their accumulators to
    stay in registers.
    """
    return min(2, -(-new_tokens * -(-heads // WARP_ROWS) // 4))


def default_config(
    layout: CacheLayout, new_tokens: int = 1, sms: int = 132, rotated: bool = False
) -> Config:
    """The first of the sizes, in the order of what measured best, whose stages fit in shared
    memory.

    Two stages are enough to keep the memory busy; longer rings only make some blocks wait for
    others' tiles.
    """
    query = row_blocks(new_tokens, layout.heads) * ROWS * round_up(layout.dim_k, 64) * 2
    sizes = [(64, 2, 2), (64, 1, 2), (32, 2, 2), (32, 1, 2), (32, 1, 1)]
    if new_tokens > 1:  # more arithmetic: two blocks on an SM come before large tiles
        sizes = [(64, 2, 2), (32, 2, 2), *sizes]
    for tokens, blocks_per_sm, stages in sizes:
        free = (SHARED_MEMORY - COMBINE_SHARED_MEMORY) // blocks_per_sm - 4096 - query
        rotated_keys = 2 * tokens * layout.rank_k * round_up(layout.dim_k, 64) if rotated else 0
        if stages * _stage_bytes(layout, tokens) + rotated_keys <= free:
            return Config(tokens, blocks_per_sm, stages, sms)
    raise NotImplementedError(f"flash_tpa_mosaic: a tile of {layout} does not fit in shared memory")


def _stage_bytes(layout: CacheLayout, tokens: int) -> int:
    boxes = ABoxes.of(layout)
    b_k = layout.rank_k * round_up(layout.dim_k, 64)
    b_v = 0 if one_copy(layout, tokens) else layout.rank_v * round_up(layout.dim_v, 64)
    return 2 * tokens * (b_k + b_v + boxes.count * boxes.columns)
