"""How several thread blocks, a team, share a head's columns of a triangle of blocks of queries and of keys.

In a round each member takes one column, from the last keys to the first, there and back by turns: the last columns are short. A
block of queries is visited by the column of every block of keys up to its own place. Visits are in the order of rounds, then of
members, whatever the time they take.
"""

import functools

import jax.numpy as jnp


class Team:
    """size: members; columns: blocks of keys. Members, rounds, columns and places may be traced integers."""

    def __init__(self, size: int, columns: int):
        self.size, self._columns = size, columns
        self.rounds = -(-columns // size)

    def column(self, turn, member):
        """A member's column in a round; negative in the last where there is none for it."""
        if self.size == 1:
            return self._columns - 1 - turn
        back = turn % 2 == 1
        return self._columns - 1 - turn * self.size - jnp.where(back, self.size - 1 - member, member)

    def rounds_of(self, member):
        if self.size == 1:
            return self.rounds
        return self.rounds - jnp.where(self.column(self.rounds - 1, member) < 0, 1, 0)

    def before(self, turn, member, place):
        """How many visits a block of queries at `place` gets before this member's in this round; `place` before the last."""
        top = self._columns - 1 - turn * self.size
        back = jnp.maximum(place - top, 0) + member - jnp.maximum(self.size - 1 - top, 0)
        return jnp.where(turn % 2 == 1, back, place - self.column(turn, member))


LARGEST = 8  # of 11 and 14 none was faster


@functools.cache
def best_size(heads: int, blocks: int, columns: int, sms: int) -> int:
    """The size of team that takes the least time for so many heads, after what an H100 took at 256 to 16,384 tokens.

    A column takes a step for each block of queries that sees it and one to begin and end. Small teams have many heads under way,
    which fall out of the L2 cache; large ones wait for their turns, unless columns are long.
    """

    def time(size):
        rounds = -(-heads // (sms // size))
        return rounds * _longest(size, blocks, columns) * (1 + 1 / size)

    if blocks <= 8:
        return 1  # in training, on an H200, four took 5 % longer at 1,024 tokens
    halves = columns > blocks  # the queries are two chunks, and most columns are seen by one
    sizes = [size for size in range(1, LARGEST + 1) if size**2 <= (1 if halves else 2) * blocks]
    return min((size for size in sizes if size <= sms), key=time)


def busy(heads: int, size: int, sms: int) -> float:
    """The share of the multiprocessors' time in which there is a head for them."""
    teams = sms // size
    return heads * size / (-(-heads // teams) * sms)


def _longest(size: int, blocks: int, columns: int) -> float:
    """Steps of the member that has most to do."""
    work = [0.0] * size
    for column in range(columns):
        turn, member = divmod(columns - 1 - column, size)
        member = size - 1 - member if turn % 2 else member
        work[member] += 1 + blocks * (1 - column / columns)
    return max(work)
