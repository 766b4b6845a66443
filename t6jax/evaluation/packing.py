"""Packs requests into rows of tokens: shared contexts are stored once, and rows have few lengths.

A request asks for the log-likelihoods of the tokens of a continuation of a context. A group is one
context with all the continuations that are asked of it. In a row it takes the tokens of the context
and, of each continuation, all tokens but the last, whose successor nobody asks for. The tokens of a
continuation see the context and the earlier tokens of their own continuation
(`t6jax.ops.attention.Segments`), at the positions that they would have if they followed the context
directly.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from t6jax.errors import InputError

# Row lengths are multiples of this, which suits the attention kernels.
ROW_MULTIPLE = 64
# A group with a short context and many continuations is split when it reaches this many tokens.
SPLIT_SIZE = 512
# A row length is used only for at least this many batches: compiling for it takes several seconds.
BATCHES_PER_LENGTH = 32
# A token in a row of T tokens costs 1 + T / ATTENTION_TOKENS of what it costs outside attention.
# The cost grows with T because attention to masked tokens is computed all the same. Measured with
# T6 XL on an H200; it only weighs row lengths against each other.
ATTENTION_TOKENS = 1500


class Request(NamedTuple):
    """What is to be scored.

    Attributes:
      context: at least one token.
      continuation: at least one token; these are scored.
    """

    context: Sequence[int]
    continuation: Sequence[int]


class Continuation(NamedTuple):
    """The continuation of one request.

    Attributes:
      request: the index of the request.
      tokens: its continuation.
    """

    request: int
    tokens: Sequence[int]


@dataclasses.dataclass
class Group:
    """A context and its continuations."""

    context: Sequence[int]
    continuations: list[Continuation]

    @property
    def size(self) -> int:
        """The tokens of a row that the group needs.

        These are its input tokens, or its scored tokens if there are more of those.
        """
        scored = sum(len(tokens) for _, tokens in self.continuations)
        return max(scored, len(self.context) + scored - len(self.continuations))


class Row(NamedTuple):
    """The groups of one row.

    Attributes:
      length: T, the tokens of the row, padding included.
      groups: the groups, one after another.
    """

    length: int
    groups: list[Group]


class PackedBatch(NamedTuple):
    """A batch of B rows as the scoring program takes it, B / D rows for each of D devices.

    Attributes:
      tokens: the input tokens; 0 where a row is padded.
      positions: their positions.
      own: their own segments, as in `Segments`; 0 where a row is padded.
      context: the segments of their contexts, as in `Segments`; 0 where a row is padded.
      logit_index: for each scored token of a device, the index of the input token whose logits
        predict it, counted over the flattened rows of the device.
      targets: the scored tokens of each device.
      count: how many of the S entries of `logit_index` and `targets` are in use on each device.
      requests: for each device, the (request index, number of scored tokens) of what it scores, in
        the order of `targets`.
    """

    tokens: Int[np.ndarray, "B T"]
    positions: Int[np.ndarray, "B T"]
    own: Int[np.ndarray, "B T"]
    context: Int[np.ndarray, "B T"]
    logit_index: Int[np.ndarray, "D S"]
    targets: Int[np.ndarray, "D S"]
    count: Int[np.ndarray, "D"]
    requests: list[list[tuple[int, int]]]


def truncate(request: Request, max_length: int) -> Request:
    """Drops as much of the start of the context as the model's window requires.

    The last token of the continuation is not an input, so context and continuation may have
    max_length + 1 tokens together.

    Args:
      request: the request.
      max_length: the input tokens of the model's window.

    Raises:
      InputError: if the continuation is empty or longer than max_length.
    """
    if not 1 <= len(request.continuation) <= max_length:
        raise InputError(
            f"a request has a continuation of {len(request.continuation)} tokens; it must have at "
            f"least 1 and fit into the model's window of {max_length}"
        )
    room = max_length + 1 - len(request.continuation)
    if len(request.context) <= room:
        return request
    return Request(request.context[-room:], request.continuation)


def group_by_context(requests: Sequence[Request]) -> list[Group]:
    """Groups the requests by context, largest group first.

    A group is split where that costs less than computing its context twice: a long context is
    computed once, and many long continuations of a short context can be spread over rows.
    """
    by_context: dict[tuple[int, ...], list[Continuation]] = {}
    for i, request in enumerate(requests):
        continuations = by_context.setdefault(tuple(request.context), [])
        continuations.append(Continuation(i, request.continuation))
    groups = [
        group
        for context, continuations in by_context.items()
        for group in _split(context, continuations)
    ]
    return sorted(groups, key=lambda group: -group.size)


def _split(context: tuple[int, ...], continuations: list[Continuation]) -> Iterator[Group]:
    longest = max(len(tokens) for _, tokens in continuations)
    limit = max(SPLIT_SIZE, 2 * len(context) + longest)
    group = Group(context, [])
    inputs, scored = len(context), 0
    for continuation in continuations:
        new = len(continuation.tokens)
        if group.continuations and max(inputs + new - 1, scored + new) > limit:
            yield group
            group = Group(context, [])
            inputs, scored = len(context), 0
        group.continuations.append(continuation)
        inputs += new - 1
        scored += new
    yield group


def pack(groups: Sequence[Group], batch_tokens: int) -> list[list[Row]]:
    """Packs groups into rows.

    All rows get one length, the cheapest, unless there is enough work to pay for another
    compilation: groups of half the size and less get their own row length if they, and the larger
    groups, fill BATCHES_PER_LENGTH batches each.

    Args:
      groups: the groups, largest first.
      batch_tokens: the tokens of a batch.

    Returns:
      The rows, as one list for each row length, longest first.
    """
    enough = BATCHES_PER_LENGTH * batch_tokens
    classes: list[list[Group]] = []  # the groups of each row length
    totals: list[int] = []  # the tokens of each
    for group in groups:
        if not classes or (group.size <= classes[-1][0].size / 2 and totals[-1] >= enough):
            classes.append([])
            totals.append(0)
        classes[-1].append(group)
        totals[-1] += group.size
    if len(classes) > 1 and totals[-1] < enough:
        classes[-2:] = [classes[-2] + classes[-1]]
    return [_pack_class(members) for members in classes]


def _pack_class(groups: list[Group]) -> list[Row]:
    """Packs groups, largest first, into rows of the one length that costs least."""
    sizes = [group.size for group in groups]
    shortest = -(-sizes[0] // ROW_MULTIPLE) * ROW_MULTIPLE
    lengths = range(shortest, max(shortest, 2 * SPLIT_SIZE) + 1, ROW_MULTIPLE)
    sample = sizes[:: len(sizes) // 2000 + 1]

    def cost(length: int) -> float:
        return len(best_fit(sample, length)) * length * (1 + length / ATTENTION_TOKENS)

    length = min(lengths, key=cost)
    return [Row(length, [groups[i] for i in row]) for row in best_fit(sizes, length)]


def best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Packs items into rows, each item where it leaves the least room.

    Args:
      sizes: the sizes of the items, largest first; none exceeds `length`.
      length: the size of a row.

    Returns:
      The indices of the items in each row.
    """
    rows: list[list[int]] = []
    rows_with_room: list[list[int]] = [[] for _ in range(length + 1)]
    rooms = 0  # bit r is set if some row has room r
    for i, size in enumerate(sizes):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms &= ~(1 << room)
            rows[row].append(i)
        else:
            room, row = length, len(rows)
            rows.append([i])
        rows_with_room[room - size].append(row)
        rooms |= 1 << (room - size)
    return rows


def batches(rows: Sequence[Row], batch_tokens: int, devices: int) -> Iterator[list[Row]]:
    """Divides rows of one length into batches of equal size.

    A batch has at most batch_tokens tokens for each device. It has fewer where there are few rows,
    so that a small evaluation is not padded to a large batch. Empty rows fill the last batch.
    """
    length = rows[0].length
    most = max(1, batch_tokens // length) * devices
    count = -(-len(rows) // most)
    batch_size = -(-len(rows) // (count * devices)) * devices
    for start in range(0, len(rows), batch_size):
        batch = list(rows[start : start + batch_size])
        yield batch + [Row(length, [])] * (batch_size - len(batch))


def to_arrays(batch: Sequence[Row], devices: int) -> PackedBatch:
    """A batch of rows as arrays, the rows divided evenly among the devices."""
    B, T = len(batch), batch[0].length
    rows_per_device = B // devices
    tokens, positions, own, context = np.zeros((4, B, T), np.int32)
    logit_index, targets = np.zeros((2, devices, rows_per_device * T), np.int32)
    count = np.zeros(devices, np.int32)
    requests: list[list[tuple[int, int]]] = [[] for _ in range(devices)]

    for b, row in enumerate(batch):
        device, device_row = divmod(b, rows_per_device)
        row_start = device_row * T
        end, segment = 0, 0  # of what has been written to the row
        for group in row.groups:
            length = len(group.context)
            segment = context_segment = segment + 1
            here = slice(end, end + length)
            tokens[b, here], positions[b, here] = group.context, np.arange(length)
            own[b, here] = context[b, here] = context_segment
            end += length
            last_of_context = row_start + end - 1
            for request, continuation in group.continuations:
                segment += 1
                inputs, n = len(continuation) - 1, count[device]
                here = slice(end, end + inputs)
                tokens[b, here], positions[b, here] = (
                    continuation[:-1],
                    length + np.arange(inputs),
                )
                own[b, here], context[b, here] = segment, context_segment
                # the context's last token predicts the first token of the continuation
                logit_index[device, n] = last_of_context
                logit_index[device, n + 1 : n + 1 + inputs] = row_start + end + np.arange(inputs)
                targets[device, n : n + 1 + inputs] = continuation
                requests[device].append((request, inputs + 1))
                count[device] += inputs + 1
                end += inputs
    return PackedBatch(tokens, positions, own, context, logit_index, targets, count, requests)
