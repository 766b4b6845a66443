"""Packed rows hold every request once and a shared context once, and no token sees what it must
not.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t6jax.errors import InputError
from t6jax.evaluation import packing
from t6jax.evaluation.packing import (
    Request,
    batches,
    best_fit,
    group_by_context,
    pack,
    to_arrays,
    truncate,
)

TOKENS = st.integers(1, 60)
CONTEXTS = st.lists(st.lists(TOKENS, min_size=1, max_size=40), min_size=1, max_size=6)
REQUESTS = CONTEXTS.flatmap(
    lambda contexts: st.lists(
        st.builds(Request, st.sampled_from(contexts), st.lists(TOKENS, min_size=1, max_size=20)),
        min_size=1,
        max_size=40,
    )
)


def packed(requests, batch_tokens, devices):
    for rows in pack(group_by_context(requests), batch_tokens):
        for batch in batches(rows, batch_tokens, devices):
            yield batch, to_arrays(batch, devices)


@settings(deadline=None, max_examples=60)
@given(REQUESTS, st.sampled_from([64, 300, 2000]), st.sampled_from([1, 3]))
def test_what_a_scored_token_sees_is_its_request_and_nothing_else(requests, batch_tokens, devices):
    found = {}
    for batch, a in packed(requests, batch_tokens, devices):
        assert len(batch) % devices == 0
        rows_each = len(batch) // devices
        T = a.tokens.shape[1]
        for device in range(devices):
            at = 0
            for i, length in a.requests[device]:
                seen = []
                for n in range(at, at + length):
                    row, place = divmod(int(a.logit_index[device, n]), T)
                    row += device * rows_each
                    mask = (a.own[row] == a.own[row, place]) | (a.own[row] == a.context[row, place])
                    places = np.flatnonzero(mask & (np.arange(T) <= place))
                    np.testing.assert_array_equal(a.positions[row, places], np.arange(len(places)))
                    seen.append(a.tokens[row, places].tolist())
                assert i not in found
                found[i] = (seen, a.targets[device, at : at + length].tolist())
                at += length
            assert at == a.count[device]
    for i, request in enumerate(requests):
        whole = [*request.context, *request.continuation]
        seen, target = found.pop(i)
        assert target == list(request.continuation)
        assert seen == [whole[:end] for end in range(len(request.context), len(whole))]
    assert not found


@settings(deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(100, 300))
def test_rows_hold_all_and_no_more_than_their_length(sizes, length):
    sizes = sorted(sizes, reverse=True)
    rows = best_fit(sizes, length)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in row) <= length for row in rows)
    # best fit opens a row only when none has room: at most one row is half empty
    assert sum(2 * sum(sizes[i] for i in row) <= length for row in rows) <= 1


@pytest.mark.usefixtures("unchecked_annotations")
def test_a_context_is_stored_once_for_all_its_answers():
    random = np.random.default_rng(0)
    draw = lambda n: random.integers(0, 50000, n).tolist()
    questions = [
        (draw(random.integers(40, 121)), [draw(random.integers(10, 31)) for _ in range(4)])
        for _ in range(1500)
    ]
    requests = [Request(context, answer) for context, answers in questions for answer in answers]
    batches_of = list(packed(requests, 32768, 1))
    once = sum(len(c) + sum(len(a) - 1 for a in answers) for c, answers in questions)
    laid = sum(a.tokens.size for _, a in batches_of)
    assert len({a.tokens.shape for _, a in batches_of}) == 1  # one program for the whole of it
    assert laid < 1.05 * once
    assert once < 0.45 * sum(len(r.context) + len(r.continuation) - 1 for r in requests)


# whose checks would look at each token again and again
@pytest.mark.usefixtures("unchecked_annotations")
def test_a_mixed_evaluation_takes_a_handful_of_lengths(monkeypatch):
    monkeypatch.setattr(packing, "BATCHES_PER_LENGTH", 2)
    random = np.random.default_rng(0)
    draw = lambda n: random.integers(0, 50000, n).tolist()
    requests = [
        Request(draw(random.integers(1, top)), draw(random.integers(1, 20)))
        for top in (30, 200, 900)
        for _ in range(900)
    ]
    shapes = lambda: {a.tokens.shape for _, a in packed(requests, 4096, 1)}
    assert 2 <= len(shapes()) <= 6  # one for each halving from 919 to the shortest row, 64, at most
    monkeypatch.undo()
    assert len(shapes()) <= 2  # 400,000 tokens are not worth several compilations


def test_one_short_context_with_many_long_continuations_is_spread_over_rows():
    requests = [Request([7], [1] * 900) for _ in range(20)]
    assert max(group.size for group in group_by_context(requests)) == 900


def test_many_one_token_answers_to_one_context_fit():
    requests = [Request([7, 8], [i % 60]) for i in range(700)]
    assert sum(a.count.sum() for _, a in packed(requests, 1024, 1)) == 700


def test_long_contexts_lose_their_beginning():
    request = Request(list(range(40)), [1, 2, 3])
    assert truncate(request, 42) == request  # the last token is no input
    assert truncate(request, 41) == Request(list(range(1, 40)), [1, 2, 3])
    assert truncate(request, 3) == Request([39], [1, 2, 3])


@pytest.mark.parametrize("continuation", [[], [1, 2, 3]])
def test_a_continuation_that_cannot_be_scored_is_named(continuation):
    with pytest.raises(
        InputError,
        match=(
            f"a continuation of {len(continuation)} tokens; it must have at least 1 and fit .* of 2"
        ),
    ):
        truncate(Request([1], continuation), 2)
