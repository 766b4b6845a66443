"""Token shards, in the format of llm.c, modded-nanogpt and the published T6 code.

A header of 256 int32 (magic 20240520, version, token count) precedes the tokens: uint16 in version
1, uint32 in version 2. Every document starts with the tokenizer's document_start. Files with "val"
in their name are for validation.

NAME.crc32 next to NAME.bin holds the CRC-32 of each 16 KiB of the file, as uint32. Windows are
checked against it as they are read. Shards of other projects have none, and are not checked.
"""

import hashlib
import os
import pathlib
import zlib
from collections.abc import Sequence

import numpy as np

from t6jax.errors import InputError
from t6jax.files import write_atomically

MAGIC = 20240520
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
DTYPES = {1: np.dtype("<u2"), 2: np.dtype("<u4")}
CHECKED_BYTES = 2**14


def version_for(vocab_size: int) -> int:
    """The version for tokens of a vocabulary: 1 for up to 65,535 tokens, 2 for more."""
    return 1 if vocab_size <= 65535 else 2


def write_shard(path: pathlib.Path, tokens: np.ndarray, version: int | None = None) -> str:
    """Writes a shard and its checksums atomically.

    Args:
        path: the .bin file to write.
        tokens: integers below 2^32.
        version: of the format; None: 1 if the tokens fit in uint16, else 2.

    Returns:
        The SHA-256 of the .bin file.
    """
    if version is None:
        version = 1 if tokens.size == 0 or int(tokens.max()) < 2**16 else 2
    header = np.zeros(HEADER_INTS, "<i4")
    header[:3] = MAGIC, version, len(tokens)
    data = np.concatenate(
        [header.view(np.uint8), np.ascontiguousarray(tokens, DTYPES[version]).view(np.uint8)]
    )
    blocks = [zlib.crc32(data[i : i + CHECKED_BYTES]) for i in range(0, len(data), CHECKED_BYTES)]
    # the checksums first: a shard that exists has them
    write_atomically(path.with_suffix(".crc32"), np.array(blocks, "<u4").tobytes())
    write_atomically(path, data.data)
    return hashlib.sha256(data).hexdigest()


def shard_header(path: pathlib.Path) -> tuple[int, int]:
    """Reads and checks a shard's header.

    Returns:
        (version, token count).

    Raises:
        InputError: if the file is missing or no shard, or if its size is not what the header says.
    """
    try:
        with path.open("rb") as f:
            header, size = f.read(HEADER_BYTES), os.fstat(f.fileno()).st_size
    except FileNotFoundError as e:
        raise InputError(f"{path} is missing: prepare or download it again") from e
    if size < HEADER_BYTES:
        raise InputError(
            f"{path} is truncated: {size} bytes are less than a shard's header of {HEADER_BYTES}"
        )
    magic, version, count = (int(x) for x in np.frombuffer(header, "<i4", 3))
    if magic != MAGIC:
        raise InputError(f"{path} is no token shard: its first number is {magic}, not {MAGIC}")
    if version not in DTYPES:
        raise InputError(f"{path} has shard version {version}; versions 1 and 2 are known")
    want = HEADER_BYTES + count * DTYPES[version].itemsize
    if size != want:
        what = "is truncated" if size < want else "is longer than its header says"
        raise InputError(
            f"{path} {what}: {size} bytes, but {count} tokens take {want}; prepare or download it "
            "again"
        )
    return version, count


def open_shard(path: pathlib.Path) -> np.ndarray:
    """The tokens of a shard, memory-mapped. Raises InputError as `shard_header` does."""
    return _Shard(path).tokens


def find_shards(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    """The shards of a split ("train" or "val") in a folder, sorted.

    Raises:
        InputError: if there are none.
    """
    shards = sorted(p for p in folder.glob("*.bin") if ("val" in p.stem) == (split == "val"))
    if not shards:
        raise InputError(
            f"{folder} holds no {split} shard (*.bin with 'val' in the name for validation, others "
            "for training)"
        )
    return shards


class Windows:
    """Windows of T + 1 tokens, T apart, over shards: a random-access source for Grain.

    windows[i] is int32 [T + 1]. No window spans two shards. Reading raises InputError for a token
    outside the vocabulary, and if a checksum does not match.
    """

    def __init__(self, paths: Sequence[pathlib.Path], length: int, vocab_size: int):
        """
        Args:
            paths: the shards.
            length: T.
            vocab_size: tokens must be below it.

        Raises:
            InputError: if a shard is damaged, or all of them are too short for one window.
        """
        self._paths, self._length, self._vocab_size = list(paths), length, vocab_size
        tokens = np.array([shard_header(p)[1] for p in paths])
        self._ends = np.cumsum(np.maximum(0, tokens - 1) // length)
        self._start_ends = np.cumsum(np.maximum(0, tokens - length))
        self._open: dict[int, _Shard] = {}
        if not len(self):
            raise InputError(
                f"{paths[0].parent} holds too few tokens in {paths[0].name} and the like for one "
                f"window of context_length + 1 = {length + 1}: give more text, or a larger "
                "data.validation_fraction"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        shard, offset = _locate(self._ends, index)
        return self._window(shard, offset * self._length)

    @property
    def num_starts(self) -> int:
        """At how many tokens a window can start."""
        return int(self._start_ends[-1])

    def starting_at(self, start: int) -> np.ndarray:
        """The window at the start-th of the num_starts tokens, int32 [T + 1]."""
        return self._window(*_locate(self._start_ends, start))

    def _window(self, shard: int, start: int) -> np.ndarray:
        if shard not in self._open:
            self._open[shard] = _Shard(self._paths[shard])
        window = self._open[shard].read(start, start + self._length + 1).astype(np.int32)
        if window.max() >= self._vocab_size:
            where = start + int(window.argmax())
            raise InputError(
                f"{self._paths[shard]} holds token {window.max()} at {where}, outside "
                f"model.vocab_size={self._vocab_size}"
            )
        return window

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}  # worker processes map the shards themselves


class _Shard:
    """A shard, memory-mapped, and its checksums if it has them."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        version, _ = shard_header(path)
        self._file = np.memmap(path, np.uint8, "r")
        self.tokens = self._file[HEADER_BYTES:].view(DTYPES[version])
        sums = path.with_suffix(".crc32")
        self._checksums = np.fromfile(sums, "<u4") if sums.is_file() else None
        if self._checksums is not None and len(self._checksums) != -(
            -len(self._file) // CHECKED_BYTES
        ):
            raise InputError(
                f"{sums} does not fit {path.name}: prepare the data again, or delete it to read "
                "without checking"
            )

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop, after checking the blocks that hold them."""
        if self._checksums is not None:
            width = self.tokens.itemsize
            first = (HEADER_BYTES + start * width) // CHECKED_BYTES
            last = (HEADER_BYTES + stop * width - 1) // CHECKED_BYTES
            for block in range(first, last + 1):
                data = self._file[block * CHECKED_BYTES : (block + 1) * CHECKED_BYTES]
                if zlib.crc32(data) != self._checksums[block]:
                    raise InputError(
                        f"{self._path} is damaged between bytes {block * CHECKED_BYTES} and "
                        f"{block * CHECKED_BYTES + len(data)}: their checksum does not match; "
                        "prepare or download it again"
                    )
        return self.tokens[start:stop]


def _locate(ends: np.ndarray, index: int) -> tuple[int, int]:
    """(shard, index in it) of the index-th item of all; ends: running totals of items per shard."""
    shard = int(np.searchsorted(ends, index, side="right"))
    return shard, index - (int(ends[shard - 1]) if shard else 0)
