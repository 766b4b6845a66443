"""Token shards, in the format of llm.c, modded-nanogpt and the published T6 code.

256 int32 of header (magic 20240520, version, token count), then the tokens: uint16 in version 1, uint32 in version 2.
Every document starts with the tokenizer's document_start. Files with "val" in their name are for validation.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from t6jax.errors import InputError

MAGIC = 20240520
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
DTYPES = {1: np.dtype("<u2"), 2: np.dtype("<u4")}


def write_shard(path: pathlib.Path, tokens: np.ndarray) -> None:
    """Writes tokens (integers below 2^32) to path, in version 1 where they fit in uint16; beside it first, then renamed."""
    version = 1 if tokens.size == 0 or int(tokens.max()) < 2**16 else 2
    header = np.zeros(HEADER_INTS, "<i4")
    header[:3] = MAGIC, version, len(tokens)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as f:
        f.write(header.tobytes())
        f.write(tokens.astype(DTYPES[version]).tobytes())
        f.flush()
        os.fsync(f.fileno())
    partial.rename(path)


def open_shard(path: pathlib.Path) -> np.ndarray:
    """The tokens of a shard, memory-mapped. Raises InputError naming what is wrong with the file."""
    size = path.stat().st_size
    if size < HEADER_BYTES:
        raise InputError(f"{path} is truncated: {size} bytes are less than a shard's header of {HEADER_BYTES}")
    magic, version, count = (int(x) for x in np.fromfile(path, "<i4", 3))
    if magic != MAGIC:
        raise InputError(f"{path} is no token shard: its first number is {magic}, not {MAGIC}")
    if version not in DTYPES:
        raise InputError(f"{path} has shard version {version}; versions 1 and 2 are known")
    want = HEADER_BYTES + count * DTYPES[version].itemsize
    if size != want:
        what = "is truncated" if size < want else "is longer than its header says"
        raise InputError(f"{path} {what}: {size} bytes, where {count} tokens take {want}; prepare or download it again")
    if not count:  # nothing can be mapped
        return np.zeros(0, DTYPES[version])
    return np.memmap(path, DTYPES[version], "r", HEADER_BYTES, (count,))


def find_shards(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    """The shards of a split ("train" or "val") in a folder, sorted. Raises InputError where there are none."""
    shards = sorted(p for p in folder.glob("*.bin") if ("val" in p.stem) == (split == "val"))
    if not shards:
        raise InputError(f"{folder} holds no {split} shard (*.bin with 'val' in the name for validation, others for training)")
    return shards


class Windows:
    """Windows of T + 1 tokens, T apart, over shards: a random-access source for Grain. No window spans two shards.

    windows[i] -> int32 [T + 1]. Raises InputError for a token outside the vocabulary.
    """

    def __init__(self, paths: Sequence[pathlib.Path], length: int, vocab_size: int):
        self._paths, self._length, self._vocab_size = list(paths), length, vocab_size
        counts = [max(0, len(open_shard(p)) - 1) // length for p in paths]
        self._ends = np.cumsum(counts)
        self._open: dict[int, np.ndarray] = {}
        if not len(self):
            raise InputError(
                f"{paths[0].parent} holds too few tokens in {paths[0].name} and the like for "
                f"one window of context_length + 1 = {length + 1}: give more text, or a larger data.validation_fraction"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        start = (index - (int(self._ends[shard - 1]) if shard else 0)) * self._length
        if shard not in self._open:
            self._open[shard] = open_shard(self._paths[shard])
        window = self._open[shard][start : start + self._length + 1].astype(np.int32)
        if window.max() >= self._vocab_size:
            where = start + int(window.argmax())
            raise InputError(
                f"{self._paths[shard]} holds token {window.max()} at {where}, outside model.vocab_size={self._vocab_size}"
            )
        return window

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}  # worker processes map the shards themselves
