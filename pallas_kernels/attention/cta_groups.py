"""How a cooperative group of CTAs shares a head's triangle of blocks of queries and blocks of keys.

A column is a block of keys with the blocks of queries that see it. In a round each member of the
group takes one column, from the last keys to the first. Later columns are shorter, so that members
take them in their own order in one round and in reverse in the next. A block of queries is visited
by the column of every block of keys up to its position. Visits are in the order of rounds, then of
members, whatever the time they take.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp


class CtaGroup:
    """Which columns each member takes, and when.

    Args:
        size: Members.
        columns: Blocks of keys.

    Members, rounds, columns and positions may be traced integers.
    """

    def __init__(self, size: int, columns: int):
        self.size, self._columns = size, columns
        self.rounds = -(-columns // size)

    def column(self, round_: Any, member: Any) -> Any:
        """A member's column in a round; negative in the last round where there is none for it."""
        if self.size == 1:
            return self._columns - 1 - round_
        is_reversed, reverse = round_ % 2 == 1, self.size - 1 - member
        if isinstance(is_reversed, jax.Array):
            offset = jnp.where(is_reversed, reverse, member)
        else:
            offset = reverse if is_reversed else member
        return self._columns - 1 - round_ * self.size - offset

    def rounds_of(self, member: Any) -> Any:
        """In how many rounds a member has a column."""
        if self.size == 1:
            return self.rounds
        return self.rounds - jnp.where(self.column(self.rounds - 1, member) < 0, 1, 0)

    def visits_before(self, round_: Any, member: Any, position: Any) -> Any:
        """How many visits a block of queries gets before this member's in this round: for the last
        visit, as many as its position.
        """
        top = self._columns - 1 - round_ * self.size
        # the first members, in a last round that has no column for them
        idle = jnp.maximum(self.size - 1 - top, 0)
        reverse = jnp.maximum(position - top, 0) + member - idle
        return jnp.where(round_ % 2 == 1, reverse, position - self.column(round_, member))


LARGEST = 8  # groups of 11 and of 14 were never faster


@functools.cache
def best_size(heads: int, blocks: int, columns: int, sms: int) -> int:
    """The size of group that takes the least time for so many heads.

    A column takes a step for each block of queries that sees it, and one to begin and end. Small
    groups have many heads under way, whose tiles then fall out of the L2 cache; members of large
    groups wait for each other, unless columns are long. The weight of the two was fitted to an
    H100's times at 256 to 16,384 tokens.
    """

    def time(size):
        rounds = -(-heads // (sms // size))
        return rounds * _longest(size, blocks, columns) * (1 + 1 / size)

    if blocks <= 8:
        return 1  # with four members, an H200 took 2 to 4 % longer at 1,024 tokens
    chunks = columns > blocks  # two, so that many columns are seen by one alone
    sizes = [size for size in range(1, LARGEST + 1) if size**2 <= (1 if chunks else 2) * blocks]
    return min((size for size in sizes if size <= sms), key=time)


def utilization(items: int, workers: int) -> float:
    """The share of the time in which a worker, which takes an item at a time, has one."""
    return items / (-(-items // workers) * workers)


def busy(heads: int, size: int, blocks: int, columns: int, sms: int) -> float:
    """The share of the multiprocessors' time in which they have a column."""
    groups = sms // size
    even = _longest(1, blocks, columns) / (size * _longest(size, blocks, columns))
    return utilization(heads, groups) * even * groups * size / sms


@functools.cache
def _longest(size: int, blocks: int, columns: int) -> float:
    """Steps of the member that has most to do."""
    group = CtaGroup(size, columns)

    def steps(member):
        taken = [group.column(round_, member) for round_ in range(group.rounds)]
        return float(sum(1 + blocks * (1 - column / columns) for column in taken if column >= 0))

    return max(map(steps, range(size)))
