"""Shards: llm.c's format to the byte, windows that never span two, and damage that is named."""

import os
import pathlib
import pickle
import resource

import numpy as np
import pytest

from t6jax import InputError
from t6jax.data.shards import (
    CHECKED_BYTES,
    HEADER_BYTES,
    Windows,
    checked_tokens,
    find_shards,
    shard_header,
    write_shard,
)
from tests.data.corpora import open_shard


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
    assert Windows([path], 3, 100)[1].tolist() == [4, 5, 99, 6]
    with pytest.raises(InputError, match="holds token 99 at 5, outside model.vocab_size=99"):
        Windows([path], 3, 99)[1]
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


@pytest.mark.parametrize("token", [2**31, 2**32 - 1])
def test_a_token_that_int32_cannot_hold_is_outside_the_vocabulary(tmp_path, token):
    path = tmp_path / "train.bin"
    write_shard(path, np.array([1, 2, token, 3]))
    with pytest.raises(InputError, match=f"holds token {token} at 2, outside"):
        Windows([path], 3, 50)[0]


@pytest.mark.parametrize("token", [-1, 2**32, 70_000])
def test_a_token_that_the_format_cannot_hold_is_not_written(tmp_path, token):
    with pytest.raises(ValueError, match="do not fit in shard version 1"):
        write_shard(tmp_path / "train.bin", np.array([1, token]), 1)
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def long_shard(tmp_path):
    """A shard of several blocks that have checksums."""
    path = tmp_path / "train.bin"
    write_shard(path, np.arange(20_000) % 1000)
    return path


@pytest.mark.parametrize("at", [HEADER_BYTES + 2 * 8000, 2 * CHECKED_BYTES + 10, 41_000])
def test_every_block_of_a_window_is_checked(long_shard, at):
    windows = Windows([long_shard], 19_999, 1000)
    assert windows[0].tolist() == (np.arange(20_000) % 1000).tolist()
    damage(long_shard, lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(InputError, match="their checksum does not match"):
        Windows([long_shard], 19_999, 1000)[0]


def test_chunks_of_a_shard_are_its_tokens_checked_each_from_the_last_ones_end(long_shard):
    chunks = [*checked_tokens(long_shard, 1000, 10_001, 5000)]
    assert [len(chunk) for chunk in chunks] == [5000, 5001, 2]
    joined = np.concatenate([chunks[0], *(chunk[1:] for chunk in chunks[1:])])
    assert joined.tolist() == (np.arange(10_001) % 1000).tolist()
    assert sum(map(len, checked_tokens(long_shard, 1000, 10**9))) == 20_000
    with pytest.raises(InputError, match=r"holds token 999 at 999, outside model.vocab_size=999"):
        [*checked_tokens(long_shard, 999, 10**9)]
    damage(long_shard, lambda data: data[:-1] + b"\7")
    assert sum(map(len, checked_tokens(long_shard, 1000, 10_000))) == 10_000
    with pytest.raises(InputError, match="their checksum does not match"):
        [*checked_tokens(long_shard, 1000, 10**9)]


def test_a_shard_that_is_cut_while_it_is_read_is_named(long_shard):
    windows = Windows([long_shard], 19_999, 1000)
    windows[0]
    os.truncate(long_shard, 30_000)
    with pytest.raises(InputError, match="train.bin ends at byte 30000, while it is read"):
        windows[0]


def descriptors() -> int:
    return len([*pathlib.Path("/proc/self/fd").iterdir()])


def test_more_shards_are_read_than_a_process_may_have_open(tmp_path):
    paths = [tmp_path / f"train_{i:06d}.bin" for i in range(60)]
    for i, path in enumerate(paths):
        write_shard(path, np.arange(i, i + 9))
    open_now = descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, limits[1]))
    try:
        windows = Windows(paths, 4, 100, open_shards=5)
        for _ in range(2):
            assert [int(windows[i][0]) for i in range(0, 120, 2)] == [*range(60)]
        assert descriptors() <= open_now + 5
        del windows
        assert descriptors() == open_now
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train_000001.bin")
    (tmp_path / "train_000002.bin").mkdir()
    write_shard(tmp_path / "train_000003.bin", np.arange(9))
    (tmp_path / "train_000003.crc32").unlink()
    os.mkfifo(tmp_path / "train_000003.crc32")
    for path in find_shards(tmp_path, "train")[:2]:
        with pytest.raises(InputError, match=f"{path.name} is no regular file"):
            shard_header(path)
    with pytest.raises(InputError, match="train_000003.crc32 is no regular file"):
        Windows([tmp_path / "train_000003.bin"], 4, 100)[0]
