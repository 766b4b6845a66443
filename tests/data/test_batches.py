"""Batches: each epoch visits every window once, the seed alone fixes the order, the state is where
it goes on.
"""

import itertools
import json
import os
import threading
import types

import grain
import numpy as np
import pytest

from t6jax import InputError
from t6jax.data import batches as batches_module
from t6jax.data.batches import training_batches, validation_batches
from t6jax.data.shards import write_shard

WINDOWS = {"batch_size": 4, "context_length": 5, "vocab_size": 1000}


@pytest.fixture
def folder(tmp_path):
    """24 training windows in two shards, 10 validation windows; a window is known by its first
    token.
    """
    write_shard(tmp_path / "train_000001.bin", np.arange(71))
    write_shard(tmp_path / "train_000002.bin", np.arange(100, 151))
    write_shard(tmp_path / "val_000000.bin", np.arange(500, 551))
    return tmp_path


def firsts(batches, count):
    return [batch[:, 0].tolist() for batch in itertools.islice(batches, count)]


def test_each_epoch_visits_every_window_once_in_a_new_order(folder):
    order = [*itertools.chain(*firsts(training_batches(folder, seed=0, **WINDOWS), 12))]
    epochs = order[:24], order[24:]
    every = [*range(0, 70, 5), *range(100, 150, 5)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == every
    assert epochs[0] != epochs[1] and epochs[0] != every


def test_the_order_is_fixed_by_the_seed(folder):
    draw = lambda seed: firsts(training_batches(folder, seed=seed, **WINDOWS), 6)
    assert draw(0) == draw(0) != draw(1)


def test_the_state_is_where_the_iterator_goes_on(folder):
    batches = training_batches(folder, seed=0, **WINDOWS)
    whole = firsts(batches, 9)
    batches = training_batches(folder, seed=0, **WINDOWS)
    firsts(batches, 4)
    state = batches.get_state()
    again = training_batches(folder, seed=0, **WINDOWS)
    again.set_state(state)
    assert firsts(again, 5) == whole[4:]


def test_a_state_that_is_set_on_an_iterator_in_use_is_where_it_goes_on(folder):
    batches = training_batches(folder, seed=0, **WINDOWS)
    whole = firsts(batches, 5)
    batches.set_state({"batches": 2})
    assert firsts(batches, 3) == whole[2:] and batches.get_state() == {"batches": 5}


def test_a_batch_holds_windows_of_t_plus_1_tokens(folder):
    batch = next(training_batches(folder, seed=0, **WINDOWS))
    assert batch.shape == (4, 6) and batch.dtype == np.int32
    assert np.all(np.diff(batch, axis=1) == 1)


def test_validation_visits_each_window_once_and_masks_the_rest(folder):
    batches = list(validation_batches(folder, **WINDOWS))
    assert [mask.tolist() for _, mask in batches] == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    seen = np.concatenate([windows[mask > 0, 0] for windows, mask in batches])
    assert sorted(seen) == list(range(500, 550, 5))
    some = list(validation_batches(folder, max_batches=2, **WINDOWS))
    for a, b in zip(some, batches, strict=False):
        np.testing.assert_array_equal(a[0], b[0])
    assert len(some) == 2


def test_what_a_reading_thread_finds_wrong_reaches_the_user_in_one_sentence(folder):
    batches = training_batches(folder, seed=0, **WINDOWS | {"vocab_size": 120})
    with pytest.raises(
        InputError, match=r"train_000002.bin holds token \d+ at \d+, outside model.vocab_size=120"
    ):
        firsts(batches, 6)


@pytest.mark.parametrize("options", [{}, {"with_replacement": True}])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_read_disjoint_parts_of_the_one_order(folder, processes, options):
    whole = firsts(training_batches(folder, seed=0, **WINDOWS, **options), 15)
    parts = [
        firsts(
            training_batches(
                folder, seed=0, process_index=p, process_count=processes, **WINDOWS, **options
            ),
            15,
        )
        for p in range(processes)
    ]
    for step, batch in enumerate(whole):
        for p in range(processes):
            assert parts[p][step] == batch[p::processes]
    assert all(len(rows) == 4 // processes for rows in parts[0])


def test_a_state_is_small_and_goes_on_with_any_number_of_processes_and_workers(folder):
    whole = firsts(training_batches(folder, seed=0, **WINDOWS), 16)
    taken, state = 0, {"batches": 0}
    # 6 batches are an epoch: the counts change in the middle of one
    for processes, steps in ((1, 4), (4, 3), (2, 5), (1, 4)):
        parts, states = [], []
        for p in range(processes):
            batches = training_batches(
                folder, seed=0, process_index=p, process_count=processes, **WINDOWS
            )
            batches.set_state(json.loads(json.dumps(state)))
            parts.append(firsts(batches, steps))
            states.append(batches.get_state())
        for step in range(steps):
            rows = [
                row
                for together in zip(*(part[step] for part in parts), strict=True)
                for row in together
            ]
            assert rows == whole[taken + step]
        assert all(s == states[0] for s in states)
        taken, state = taken + steps, states[0]
    assert state == {"batches": 16}


@pytest.mark.slow
def test_worker_processes_change_nothing(folder):
    whole = firsts(training_batches(folder, seed=0, **WINDOWS), 12)
    batches = training_batches(folder, seed=0, num_workers=2, **WINDOWS)
    assert firsts(batches, 5) == whole[:5]
    state = batches.get_state()
    batches.close()
    batches = training_batches(folder, seed=0, num_workers=1, **WINDOWS)
    batches.set_state(state)
    assert firsts(batches, 7) == whole[5:]
    batches.close()
    damaged = training_batches(folder, seed=0, num_workers=1, **WINDOWS | {"vocab_size": 120})
    with pytest.raises(
        InputError, match=r"train_000002.bin holds token \d+ at \d+, outside model.vocab_size=120"
    ):
        firsts(damaged, 6)
    damaged.close()


def test_a_worker_process_ends_when_its_parent_has(folder, monkeypatch):
    """However the parent ends: its sentinel is the end of a pipe."""
    reader, writer = os.pipe()
    parent, ended = types.SimpleNamespace(sentinel=reader), threading.Event()
    monkeypatch.setattr(batches_module.multiprocessing, "parent_process", lambda: parent)
    monkeypatch.setattr(batches_module.os, "_exit", lambda status: ended.set())
    started = []
    monkeypatch.setattr(
        grain.IterDataset,
        "mp_prefetch",
        lambda self, _, worker_init_fn: started.append(worker_init_fn) or self,
    )
    batches = training_batches(folder, seed=0, num_workers=1, **WINDOWS)
    next(batches)
    started[0](0, 1)
    assert not ended.wait(0.05)
    os.close(writer)
    assert ended.wait(5)
    batches.close()
    os.close(reader)


def test_windows_with_replacement_start_anywhere_in_a_shard(folder):
    batches = training_batches(folder, seed=0, with_replacement=True, **WINDOWS)
    drawn = np.concatenate([next(batches) for _ in range(500)])
    assert np.all(np.diff(drawn, axis=1) == 1), "no window spans two shards"
    counts = np.bincount(drawn[:, 0], minlength=146)
    starts = [*range(71 - 5), *range(100, 151 - 5)]
    assert set(np.flatnonzero(counts)) <= set(starts)
    expected = len(drawn) / len(starts)
    # each start is drawn a Poisson number of times, about 18 here: 6 standard deviations on either
    # side
    assert np.all(np.abs(counts[starts] - expected) < 6 * np.sqrt(expected))
    again = training_batches(folder, seed=0, with_replacement=True, **WINDOWS)
    np.testing.assert_array_equal(np.concatenate([next(again) for _ in range(500)]), drawn)


@pytest.fixture
def other(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    write_shard(folder / "train.bin", np.arange(600, 636))
    write_shard(folder / "val.bin", np.arange(700, 736))
    return folder


def test_a_mixture_gives_each_source_its_share_in_its_own_order(folder, other):
    mixture = [(folder, 3.0), (other, 1.0)]
    batches = training_batches(mixture, seed=0, **WINDOWS)
    order = [*itertools.chain(*firsts(batches, 24))]
    from_other = [first for first in order if first >= 600]
    assert all(sum(first >= 600 for first in order[i : i + 4]) == 1 for i in range(0, 96, 4)), (
        "a quarter of every run of windows"
    )
    assert sorted(from_other[:7]) == list(range(600, 635, 5)), (
        "an epoch of it visits each of its windows once"
    )
    assert sorted(first for first in order if first < 600)[:3] == [0, 0, 0], (
        "three epochs of the larger share"
    )
    state = batches.get_state()
    again = training_batches(mixture, seed=0, process_index=1, process_count=2, **WINDOWS)
    again.set_state(state)
    assert firsts(again, 3) == [batch[1::2] for batch in firsts(batches, 3)]


def test_a_mixtures_validation_has_the_same_shares(folder, other):
    batches = [*validation_batches([(folder, 1.0), (other, 1.0)], **WINDOWS)]
    seen = np.concatenate([windows[mask > 0, 0] for windows, mask in batches])
    assert sum(seen >= 700) == 7 == sum(seen < 700)


def test_a_flipped_bit_is_named_before_its_batch_is_used(folder):
    path = folder / "train_000002.bin"
    data = bytearray(path.read_bytes())
    data[1024 + 40] ^= 4
    path.write_bytes(data)
    batches = training_batches(folder, seed=0, **WINDOWS)
    with pytest.raises(
        InputError,
        match=(
            r"train_000002.bin is damaged between bytes 0 and 1126, or train_000002.crc32 is: "
            r"their checksum does not match; python -m t6jax.data.verify .* says which"
        ),
    ):
        firsts(batches, 6)


def test_shards_without_checksums_are_read_without(folder):
    for path in folder.glob("*.crc32"):
        path.unlink()
    assert len(firsts(training_batches(folder, seed=0, **WINDOWS), 6)) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer, at least 1; got 0"),
        ({"batch_size": -4}, "batch_size must be an integer, at least 1; got -4"),
        ({"context_length": 0}, "context_length must be an integer, at least 1; got 0"),
        ({"vocab_size": "9"}, "vocab_size must be an integer, at least 1; got '9'"),
        ({"num_workers": -1}, "num_workers must be an integer, at least 0; got -1"),
    ],
)
def test_counts_that_cannot_be_are_named(folder, options, message):
    with pytest.raises(InputError, match=message):
        training_batches(folder, seed=0, **WINDOWS | options)
    if "num_workers" not in options:
        with pytest.raises(InputError, match=message):
            validation_batches(folder, **WINDOWS | options)
    with pytest.raises(InputError, match="max_batches must be an integer, at least 1; got 0"):
        validation_batches(folder, max_batches=0, **WINDOWS)


@pytest.mark.parametrize("weight", ["1", 0, -1.0, float("nan"), float("inf"), None, True])
def test_a_weight_that_is_no_share_is_named(folder, weight):
    with pytest.raises(InputError, match="the weight of .* must be a finite number, above 0; got"):
        training_batches([(folder, 1.0), (folder, weight)], seed=0, **WINDOWS)


def test_a_batch_that_the_processes_cannot_share_is_refused(folder):
    with pytest.raises(InputError, match="batch_size=4 must be a multiple of the 3 processes"):
        training_batches(folder, seed=0, process_index=0, process_count=3, **WINDOWS)
