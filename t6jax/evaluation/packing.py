"""Requests into rows of tokens: what several requests share is laid down once, and rows come in a
few fixed lengths.

A request asks for the log-likelihoods of the tokens of a continuation behind a context. A group is
one context with the continuations that were asked for behind it; it occupies the context's tokens
and, of each continuation, all but the last token, which nothing follows. A continuation's tokens
see the context and what precedes them in their own continuation (t6jax.ops.attention.Segments), at
the positions that they have behind the context alone.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from t6jax.errors import InputError

# rows are multiples of it, as the kernels like them
MULTIPLE = 64
# a group whose context is short beside its continuations is split at this size
SMALL = 512
# batches that a length of row must have to be worth its compilation of several seconds
WORTH = 32
# The time of a token in a row of T tokens is taken to be 1 + T / ATTENTION of what it costs outside
# attention, which grows with the row since what a token does not see is masked and not skipped. For
# T6 XL on an H200; it only weighs row lengths against each other.
ATTENTION = 1500


class Request(NamedTuple):
    """context: at least one token. continuation: at least one token."""

    context: Sequence[int]
    continuation: Sequence[int]


@dataclasses.dataclass
class Group:
    """A context, and its continuations as (index of the request, tokens)."""

    context: Sequence[int]
    continuations: list[tuple[int, Sequence[int]]]

    @property
    def size(self) -> int:
        """What it takes of a row: input tokens, or scored tokens where they are more."""
        scored = sum(len(tokens) for _, tokens in self.continuations)
        return max(scored, len(self.context) + scored - len(self.continuations))


class Row(NamedTuple):
    """length: T, a fixed number of tokens. groups: those laid down in it, one behind another."""

    length: int
    groups: list[Group]


class Arrays(NamedTuple):
    """Rows as a program takes them, the rows of each of D devices in turn.

    tokens, positions: of the row's tokens; own, context: their segments, as in Segments; 0 where
        the row is padded.
    index, target: the n-th scored token of a device has its logits at place `index` of the device's
        rows, laid flat, and is `target`; behind `count` of them there is nothing. requests:
        (request, scored tokens) in that order, a device.
    """

    tokens: Int[np.ndarray, "B T"]
    positions: Int[np.ndarray, "B T"]
    own: Int[np.ndarray, "B T"]
    context: Int[np.ndarray, "B T"]
    index: Int[np.ndarray, "D S"]
    target: Int[np.ndarray, "D S"]
    count: Int[np.ndarray, "D"]
    requests: list[list[tuple[int, int]]]


def truncated(request: Request, max_length: int) -> Request:
    """The request with as much of the end of its context as a window of max_length input tokens
    holds.

    The last token of the continuation is no input, so context and continuation may have max_length
    + 1 tokens together. Raises InputError where the continuation is empty, or alone longer than
    max_length.
    """
    if not 1 <= len(request.continuation) <= max_length:
        raise InputError(
            f"a request asks for a continuation of {len(request.continuation)} tokens; it must "
            "have at least 1, and fit the "
            f"model's window of {max_length}"
        )
    room = max_length + 1 - len(request.continuation)
    return (
        request
        if len(request.context) <= room
        else Request(request.context[-room:], request.continuation)
    )


def grouped(requests: Sequence[Request]) -> list[Group]:
    """The requests by context, largest group first.

    A group is split where that costs less than twice its context: a long context is not computed
    twice, and many long continuations of a short one can be spread over rows.
    """
    by_context: dict[tuple[int, ...], list[tuple[int, Sequence[int]]]] = {}
    for i, request in enumerate(requests):
        by_context.setdefault(tuple(request.context), []).append((i, request.continuation))
    groups = [
        piece
        for context, continuations in by_context.items()
        for piece in _pieces(context, continuations)
    ]
    return sorted(groups, key=lambda group: -group.size)


def _pieces(
    context: tuple[int, ...], continuations: list[tuple[int, Sequence[int]]]
) -> Iterator[Group]:
    longest = max(len(tokens) for _, tokens in continuations)
    limit = max(SMALL, 2 * len(context) + longest)
    taken: list[tuple[int, Sequence[int]]] = []
    inputs, scored = len(context), 0
    for i, tokens in continuations:
        if taken and max(inputs + len(tokens) - 1, scored + len(tokens)) > limit:
            yield Group(context, taken)
            taken, inputs, scored = [], len(context), 0
        taken.append((i, tokens))
        inputs += len(tokens) - 1
        scored += len(tokens)
    yield Group(context, taken)


def in_rows(groups: Sequence[Group], batch_tokens: int) -> list[list[Row]]:
    """The groups, largest first, in rows: a list for each length that is used.

    One length, the cheapest, unless there is work for another compilation: groups of half the size
    and less get a length of their own where they, and those before them, are WORTH batches of
    batch_tokens each.
    """
    worth, classes, totals = WORTH * batch_tokens, [], []
    for group in groups:
        if not classes or (group.size <= classes[-1][0].size / 2 and totals[-1] >= worth):
            classes.append([])
            totals.append(0)
        classes[-1].append(group)
        totals[-1] += group.size
    if len(classes) > 1 and totals[-1] < worth:
        classes[-2:] = [classes[-2] + classes[-1]]
    return [_rows(members) for members in classes]


def _rows(groups: list[Group]) -> list[Row]:
    sizes = [group.size for group in groups]
    least = -(-sizes[0] // MULTIPLE) * MULTIPLE
    sample = sizes[:: len(sizes) // 2000 + 1]
    cost = lambda length: len(fit(sample, length)) * length * (1 + length / ATTENTION)
    length = min(range(least, max(least, 2 * SMALL) + 1, MULTIPLE), key=cost)
    return [Row(length, [groups[i] for i in row]) for row in fit(sizes, length)]


def fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Indices of the sizes, largest first, in rows of at most `length`: each where it leaves the
    least room.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # the rows that have so much room
    rooms = 0  # bit r: whether there is a row with room r
    for i, size in enumerate(sizes):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
            rows[row].append(i)
        else:
            room, row = length, len(rows)
            rows.append([i])
        with_room[room - size].append(row)
        rooms |= 1 << (room - size)
    return rows


def batches(rows: Sequence[Row], batch_tokens: int, devices: int) -> Iterator[list[Row]]:
    """Rows of one length, so many at a time that a device takes batch_tokens; the last ones are
    filled up with empty rows.

    Fewer where there are not so many, so that a small evaluation is not padded to a large batch.
    """
    length = rows[0].length
    most = max(1, batch_tokens // length) * devices
    count = -(-len(rows) // most)
    each = -(-len(rows) // (count * devices)) * devices
    for start in range(0, len(rows), each):
        batch = list(rows[start : start + each])
        yield batch + [Row(length, [])] * (each - len(batch))


def arrays(batch: Sequence[Row], devices: int) -> Arrays:
    """A batch of rows as a program takes it."""
    B, T = len(batch), batch[0].length
    places = B // devices * T
    tokens, positions, own, context = np.zeros((4, B, T), np.int32)
    index, target = np.zeros((2, devices, places), np.int32)
    count, requests = np.zeros(devices, np.int32), [[] for _ in range(devices)]

    for b, row in enumerate(batch):
        device, base = divmod(b, B // devices)
        base *= T
        at, segment = 0, 0
        for group in row.groups:
            length = len(group.context)
            segment = shared = segment + 1
            here = slice(at, at + length)
            tokens[b, here], positions[b, here] = group.context, np.arange(length)
            own[b, here] = context[b, here] = shared
            last, at = base + at + length - 1, at + length
            for i, continuation in group.continuations:
                segment += 1
                new, n = len(continuation) - 1, count[device]
                here = slice(at, at + new)
                tokens[b, here], positions[b, here] = continuation[:-1], length + np.arange(new)
                own[b, here], context[b, here] = segment, shared
                index[device, n] = (
                    last  # the context's last token says what the first of the continuation is
                )
                index[device, n + 1 : n + 1 + new] = base + at + np.arange(new)
                target[device, n : n + 1 + new] = continuation
                requests[device].append((i, new + 1))
                count[device] += new + 1
                at += new
    return Arrays(tokens, positions, own, context, index, target, count, requests)
