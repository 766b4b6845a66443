"""Shards: llm.c's format to the byte, windows that never span two, and damage that is named."""

import pickle

import numpy as np
import pytest

from t6jax import InputError
from t6jax.data.shards import Windows, find_shards, open_shard, write_shard


def test_the_format_is_llm_cs(tmp_path):
    path = tmp_path / "train_000001.bin"
    write_shard(path, np.array([50256, 1, 65535]))
    data = path.read_bytes()
    assert len(data) == 1024 + 6
    assert np.frombuffer(data[:12], "<i4").tolist() == [20240520, 1, 3]
    assert not any(data[12:1024])
    assert np.frombuffer(data[1024:], "<u2").tolist() == [50256, 1, 65535]


def test_tokens_beyond_uint16_are_version_2(tmp_path):
    path = tmp_path / "train.bin"
    write_shard(path, np.array([3, 65536]))
    assert np.fromfile(path, "<i4", 3).tolist() == [20240520, 2, 2]
    assert open_shard(path).tolist() == [3, 65536]


def test_an_empty_shard_is_a_shard(tmp_path):
    path = tmp_path / "train.bin"
    write_shard(path, np.array([], np.int64))
    assert len(open_shard(path)) == 0


def damage(path, change):
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:-1], "train.bin is truncated: 1043 bytes, but 10 tokens take 1044"),
        (lambda d: d[:1000], "train.bin is truncated: 1000 bytes are less than a shard's header"),
        (lambda d: d + b"\0", "train.bin is longer than its header says"),
        (lambda d: b"\1" + d[1:], "train.bin is no token shard: its first number is "),
        (lambda d: d[:4] + b"\7" + d[5:], "train.bin has shard version 7"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, change, message):
    path = tmp_path / "train.bin"
    write_shard(path, np.arange(10))
    damage(path, change)
    with pytest.raises(InputError, match=message):
        Windows([path], 4, 100)


def test_windows_cover_each_shard_and_span_none(tmp_path):
    paths = [tmp_path / f"train_{i}.bin" for i in range(4)]
    for path, tokens in zip(
        paths,
        (np.arange(11), np.arange(100, 103), np.array([], int), np.arange(200, 210)),
        strict=True,
    ):
        write_shard(path, tokens)
    windows = Windows(paths, 3, 1000)
    # (11 - 1) // 3 windows, then none in a shard of 3 tokens or of none, then (10 - 1) // 3
    assert [windows[i].tolist() for i in range(len(windows))] == [
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [6, 7, 8, 9],
        [200, 201, 202, 203],
        [203, 204, 205, 206],
        [206, 207, 208, 209],
    ]
    assert windows[0].dtype == np.int32
    assert pickle.loads(pickle.dumps(windows))[4].tolist() == [203, 204, 205, 206]


def test_a_token_outside_the_vocabulary_is_named_with_its_place(tmp_path):
    path = tmp_path / "train.bin"
    write_shard(path, np.array([1, 2, 3, 4, 5, 99, 6]))
    windows = Windows([path], 3, 50)
    assert windows[0].tolist() == [1, 2, 3, 4]
    with pytest.raises(
        InputError, match=r"train.bin holds token 99 at 5, outside model.vocab_size=50"
    ):
        windows[1]


def test_too_few_tokens_and_missing_shards_are_named(tmp_path):
    write_shard(tmp_path / "train.bin", np.arange(4))
    with pytest.raises(
        InputError,
        match="too few tokens in train.bin and the like for one window of context_length",
    ):
        Windows([tmp_path / "train.bin"], 4, 50)
    with pytest.raises(InputError, match="holds no val shard"):
        find_shards(tmp_path, "val")
