"""Batches: each epoch visits every window once, the seed alone fixes the order, the state is where it goes on."""

import itertools

import numpy as np
import pytest

from t6jax import InputError
from t6jax.data.batches import training_batches, validation_batches
from t6jax.data.shards import write_shard

WINDOWS = {"batch_size": 4, "context_length": 5, "vocab_size": 1000}


@pytest.fixture
def folder(tmp_path):
    """24 training windows in two shards, 10 validation windows; a window is known by its first token."""
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
    with pytest.raises(InputError, match=r"train_000002.bin holds token \d+ at \d+, outside model.vocab_size=120"):
        firsts(batches, 6)
