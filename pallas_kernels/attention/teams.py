"""How several thread blocks, a team, share a head's columns of a triangle of blocks of queries and
of keys.

In a round each member takes one column, from the last keys to the first. Later columns are shorter,
so that members take them in their own order and in the reverse by turns. A block of queries is
visited by the column of every block of keys up to its place. Visits are in the order of rounds,
then of members, whatever the time they take.
"""

import functools

import jax
import jax.numpy as jnp


class Team:
    """size: members; columns: blocks of keys. Members, rounds, columns and places may be traced
    integers.
    """

    def __init__(self, size: int, columns: int):
        self.size, self._columns = size, columns
        self.rounds = -(-columns // size)

    def column(self, turn, member):
        """A member's column in a round; negative in the last where there is none for it."""
        if self.size == 1:
            return self._columns - 1 - turn
        reverse, other = turn % 2 == 1, self.size - 1 - member
        taken = (
            jnp.where(reverse, other, member)
            if isinstance(reverse, jax.Array)
            else other
            if reverse
            else member
        )
        return self._columns - 1 - turn * self.size - taken

    def rounds_of(self, member):
        if self.size == 1:
            return self.rounds
        return self.rounds - jnp.where(self.column(self.rounds - 1, member) < 0, 1, 0)

    def before(self, turn, member, place):
        """How many visits a block of queries at `place` gets before this member's in this round:
        `place` for the last visit.
        """
        top = self._columns - 1 - turn * self.size
        idle = jnp.maximum(
            self.size - 1 - top, 0
        )  # the first members, in a last round that has no column for them
        reverse = jnp.maximum(place - top, 0) + member - idle
        return jnp.where(turn % 2 == 1, reverse, place - self.column(turn, member))


LARGEST = 8  # of 11 and 14 none was faster


@functools.cache
def best_size(heads: int, blocks: int, columns: int, sms: int) -> int:
    """The size of team that takes the least time for so many heads.

    A column takes a step for each block of queries that sees it and one to begin and end. Small
    teams have many heads under way, which fall out of the L2 cache; large ones wait for their
    turns, unless columns are long. How much of either was fitted to an H100's times at 256 to
    16,384 tokens.
    """

    def time(size):
        rounds = -(-heads // (sms // size))
        return rounds * _longest(size, blocks, columns) * (1 + 1 / size)

    if blocks <= 8:
        return 1  # with four, an H200 took 2 to 4 % longer at 1,024 tokens
    chunks = columns > blocks  # two, so that many columns are seen by one alone
    sizes = [size for size in range(1, LARGEST + 1) if size**2 <= (1 if chunks else 2) * blocks]
    return min((size for size in sizes if size <= sms), key=time)


def utilization(items: int, workers: int) -> float:
    """The share of the time in which a worker that takes an item at a time has one."""
    return items / (-(-items // workers) * workers)


def busy(heads: int, size: int, blocks: int, columns: int, sms: int) -> float:
    """The share of the multiprocessors' time in which there is a column for them."""
    teams = sms // size
    even = _longest(1, blocks, columns) / (size * _longest(size, blocks, columns))
    return utilization(heads, teams) * even * teams * size / sms


@functools.cache
def _longest(size: int, blocks: int, columns: int) -> float:
    """Steps of the member that has most to do."""
    team = Team(size, columns)
    taken = [[team.column(turn, member) for turn in range(team.rounds)] for member in range(size)]
    return max(
        sum(1 + blocks * (1 - column / columns) for column in own if column >= 0) for own in taken
    )
