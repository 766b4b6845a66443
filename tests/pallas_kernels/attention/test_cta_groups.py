"""Who takes which column of a head, and in which order a block of queries is visited."""

import itertools

import pytest

from pallas_kernels.attention.cta_groups import LARGEST, CtaGroup, best_size, busy


@pytest.mark.parametrize(
    "size, columns", [(1, 1), (1, 5), (2, 2), (2, 7), (3, 8), (4, 8), (4, 9), (5, 32), (8, 12)]
)
def test_every_column_is_taken_once_and_every_visit_has_its_place_in_one_order(size, columns):
    group = CtaGroup(size, columns)
    taken = {
        (round_, member): int(group.column(round_, member))
        for member in range(size)
        for round_ in range(int(group.rounds_of(member)))
    }
    assert sorted(taken.values()) == list(range(columns))
    for position in range(columns):
        seeing = [round_ for round_ in sorted(taken) if taken[round_] <= position]
        assert [int(group.visits_before(*round_, position)) for round_ in seeing] == list(
            range(position + 1)
        )


@pytest.mark.parametrize("size, columns", [(2, 8), (4, 8), (4, 16), (8, 64)])
def test_the_work_of_members_is_the_same_where_rounds_come_in_pairs(size, columns):
    group = CtaGroup(size, columns)
    steps = [
        sum(columns - int(group.column(round_, m)) for round_ in range(group.rounds))
        for m in range(size)
    ]
    assert len(set(steps)) == 1


def test_a_group_has_no_more_members_than_columns_or_multiprocessors():
    for heads, blocks, sms in itertools.product(
        (1, 78, 1872), (1, 2, 3, 6, 8, 17, 64), (1, 3, 132)
    ):
        for columns in (blocks, 2 * blocks):
            size = best_size(heads, blocks, columns, sms)
            assert 1 <= size <= min(columns, sms, LARGEST)
            assert 0 < busy(heads, size, blocks, columns, sms) <= 1


def test_heads_are_shared_where_sequences_are_long():
    assert (
        best_size(24 * 78, 8, 8, 132) == best_size(32 * 47, 4, 8, 132) == 1
    )  # T6 XL; T6 medium, two chunks of 256
    for heads, tokens in ((12 * 78, 2048), (6 * 78, 4096), (47, 16384), (25, 16384)):
        shape = tokens // 128, tokens // 128, 132
        size = best_size(heads, *shape)
        assert size > 1 and busy(heads, size, *shape) > 0.9


def test_a_member_with_more_to_do_keeps_the_others_waiting():
    assert busy(26, 5, 17, 17, 130) < 0.8 < busy(26, 5, 20, 20, 130)
