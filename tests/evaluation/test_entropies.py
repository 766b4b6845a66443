"""The entropies count training tokens that are checked: a damaged shard makes no other number."""

import numpy as np
import pytest

from t6jax import InputError
from t6jax.data.shards import write_shard
from t6jax.evaluation import validation
from t6jax.evaluation.validation import entropies


@pytest.fixture
def folder(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 7, (2, 500))
    for number, some in enumerate(tokens):
        write_shard(tmp_path / f"train_{number:06d}.bin", some)
    return tmp_path, tokens


def test_they_are_of_the_counts_of_tokens_and_of_pairs_in_a_shard(folder, monkeypatch):
    path, tokens = folder
    monkeypatch.setattr(validation, "LARGEST_COUNTED_SAMPLE", 800)
    counted = [tokens[0], tokens[1, :300]]
    single, pairs = np.zeros(8), np.zeros((8, 8))
    for some in counted:
        np.add.at(single, some, 1)
        np.add.at(pairs, (some[:-1], some[1:]), 1)
    order_0 = (single + 1 / 8) / (single.sum() + 1)
    bigram = (pairs + order_0) / (pairs.sum(1, keepdims=True) + 1)
    batches = [(np.array([[1, 2, 7], [3, 4, 5]]), np.array([1.0, 0.0]))]
    found = entropies([(path, 1.0)], 8, batches)
    assert found.order_0 == pytest.approx(-np.log(order_0[[2, 7]]).mean())
    assert found.bigram == pytest.approx(-np.log(bigram[[1, 2], [2, 7]]).mean())


def test_damage_and_tokens_outside_the_vocabulary_are_named(folder):
    path, _ = folder
    batches = [(np.array([[1, 2, 3]]), np.array([1.0]))]
    with pytest.raises(InputError, match="holds token 6 at .* outside model.vocab_size=6"):
        entropies([(path, 1.0)], 6, batches)
    shard = path / "train_000001.bin"
    data = bytearray(shard.read_bytes())
    data[-2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=r"train_000001.bin is damaged .*checksum does not match"):
        entropies([(path, 1.0)], 8, batches)
