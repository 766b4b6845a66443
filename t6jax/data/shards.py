"""Token shards, in the format of llm.c, modded-nanogpt and the published T6 code.

A header of 256 int32 (magic 20240520, version, token count) precedes the tokens: uint16 in version
1, uint32 in version 2. Every document starts with the tokenizer's document_start. Files with "val"
in their name are for validation.

NAME.crc32 next to NAME.bin holds the CRC-32 of each 16 KiB of the file, as uint32. Tokens are
checked against it as they are read. Shards of other projects have none, and are not checked.
"""

import functools
import hashlib
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from t6jax.errors import InputError
from t6jax.files import open_regular, read_regular, write_atomically

MAGIC = 20240520
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
DTYPES = {1: np.dtype("<u2"), 2: np.dtype("<u4")}
CHECKED_BYTES = 2**14
MAX_TOKENS = 2**31 - 1  # that the header can count
OPEN_SHARDS = 128  # at a time, of a process: the usual limit is 1,024 files


def version_for(vocab_size: int) -> int:
    """The version for tokens of a vocabulary: 1 for up to 65,535 tokens, 2 for more."""
    return 1 if vocab_size <= 65535 else 2


def write_shard(path: pathlib.Path, tokens: np.ndarray, version: int | None = None) -> str:
    """Writes a shard and its checksums atomically.

    Args:
        path: the .bin file to write.
        tokens: integers from 0 that the version holds, at most MAX_TOKENS of them.
        version: of the format; None: 1 if the tokens fit in uint16, else 2.

    Returns:
        The SHA-256 of the .bin file.

    Raises:
        ValueError: a token does not fit.
    """
    low, high = (int(tokens.min()), int(tokens.max())) if tokens.size else (0, 0)
    if version is None:
        version = 1 if high < 2**16 else 2
    if low < 0 or high > np.iinfo(DTYPES[version]).max:
        raise ValueError(f"tokens from {low} to {high} do not fit in shard version {version}")
    header = np.zeros(HEADER_INTS, "<i4")
    header[:3] = MAGIC, version, len(tokens)
    data = np.concatenate(
        [header.view(np.uint8), np.ascontiguousarray(tokens, DTYPES[version]).view(np.uint8)]
    )
    # the checksums first: a shard that exists has them
    write_atomically(path.with_suffix(".crc32"), block_checksums(data.data))
    write_atomically(path, data.data)
    return hashlib.sha256(data).hexdigest()


def block_checksums(data: bytes | memoryview) -> bytes:
    """What a .crc32 file holds, of a shard or of a part that begins at a multiple of 16 KiB."""
    blocks = [zlib.crc32(data[i : i + CHECKED_BYTES]) for i in range(0, len(data), CHECKED_BYTES)]
    return np.array(blocks, "<u4").tobytes()


def shard_header(path: pathlib.Path) -> tuple[int, int]:
    """Reads and checks a shard's header.

    Returns:
        (version, token count).

    Raises:
        InputError: if the file is missing or no shard, or if its size is not what the header says.
    """
    with _open(path) as file:
        return _header(path, file)


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


class Shard:
    """A shard that is open for reading, and its checksums if it has them."""

    def __init__(self, path: pathlib.Path):
        """Raises InputError as `shard_header` does, and if the checksums do not fit."""
        self._path = path
        with _open(path) as file:
            version, self.count = _header(path, file)
            self._file = os.dup(file.fileno())
        self._dtype = DTYPES[version]
        self._size = HEADER_BYTES + self.count * self._dtype.itemsize
        self._checksums = None
        sums = path.with_suffix(".crc32")
        if sums.exists():
            data = read_regular(sums)
            if len(data) != 4 * -(-self._size // CHECKED_BYTES):
                raise InputError(f"{sums} does not fit {path.name}: {_which(path)}")
            self._checksums = np.frombuffer(data, "<u4")

    def __del__(self):
        # one that is forgotten while another thread reads ends after that
        if hasattr(self, "_file"):
            os.close(self._file)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop, after checking the blocks that hold them."""
        width = self._dtype.itemsize
        first, last = HEADER_BYTES + start * width, HEADER_BYTES + stop * width
        begin, end = first, last
        if self._checksums is not None:
            begin -= begin % CHECKED_BYTES
            end = min(-(-end // CHECKED_BYTES) * CHECKED_BYTES, self._size)
        data = self._bytes(begin, end)
        if self._checksums is not None:
            for at in range(begin, end, CHECKED_BYTES):
                block = data[at - begin : at - begin + CHECKED_BYTES]
                if zlib.crc32(block) != self._checksums[at // CHECKED_BYTES]:
                    raise InputError(
                        f"{self._path} is damaged between bytes {at} and {at + len(block)}, or "
                        f"{self._path.with_suffix('.crc32').name} is: their checksum does not "
                        f"match; {_which(self._path)}"
                    )
        return np.frombuffer(data, self._dtype, stop - start, first - begin)

    def _bytes(self, begin: int, end: int) -> bytes:
        # not memory-mapped: a disk that fails, or a file that is cut now, would kill the process
        pieces, at = [], begin
        while at < end:
            try:
                piece = os.pread(self._file, end - at, at)
            except OSError as e:
                raise InputError(
                    f"{self._path} cannot be read at byte {at} ({e.strerror}): check the disk"
                ) from e
            if not piece:
                raise InputError(
                    f"{self._path} ends at byte {at}, while it is read: prepare or download it "
                    "again"
                )
            pieces.append(piece)
            at += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def checked_tokens(
    path: pathlib.Path, vocab_size: int, most: int, chunk: int = 2**22
) -> Iterator[np.ndarray]:
    """The first tokens of a shard, in chunks of which each begins with the last one's last token.

    Args:
        path: the shard.
        vocab_size: tokens must be below it.
        most: tokens to read; the shard may have fewer.
        chunk: new tokens in each.

    Raises:
        InputError: the shard is damaged, or a token is outside the vocabulary.
    """
    shard = Shard(path)
    count = min(most, shard.count)
    for start in range(0, count, chunk):
        tokens = shard.read(max(0, start - 1), min(start + chunk, count))
        check_vocabulary(path, max(0, start - 1), tokens, vocab_size)
        yield tokens


def check_vocabulary(path: pathlib.Path, start: int, tokens: np.ndarray, vocab_size: int) -> None:
    """Raises InputError if one of a shard's tokens, from the start-th, is not below vocab_size."""
    if int(tokens.max()) >= vocab_size:
        raise InputError(
            f"{path} holds token {tokens.max()} at {start + int(tokens.argmax())}, outside "
            f"model.vocab_size={vocab_size}"
        )


class Windows:
    """Windows of T + 1 tokens, T apart, over shards: a random-access source for Grain.

    windows[i] is int32 [T + 1]. No window spans two shards. Reading raises InputError for a token
    outside the vocabulary, and if a checksum does not match.
    """

    def __init__(
        self,
        paths: Sequence[pathlib.Path],
        length: int,
        vocab_size: int,
        open_shards: int = OPEN_SHARDS,
    ):
        """
        Args:
            paths: the shards.
            length: T.
            vocab_size: tokens must be below it.
            open_shards: how many are kept open, those that were read last.

        Raises:
            InputError: if a shard is damaged, or all of them are too short for one window.
        """
        self._paths, self._length, self._vocab_size = list(paths), length, vocab_size
        self._open_shards = open_shards
        tokens = np.array([shard_header(p)[1] for p in paths])
        self._ends = np.cumsum(np.maximum(0, tokens - 1) // length)
        self._start_ends = np.cumsum(np.maximum(0, tokens - length))
        self._open = functools.lru_cache(open_shards)(Shard)
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
        path = self._paths[shard]
        window = self._open(path).read(start, start + self._length + 1)
        check_vocabulary(path, start, window, self._vocab_size)  # before the cast: 2^31 is no -2^31
        return window.astype(np.int32)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": None}

    def __setstate__(self, state: dict) -> None:  # worker processes open the shards themselves
        self.__dict__ = state | {"_open": functools.lru_cache(state["_open_shards"])(Shard)}


def _open(path: pathlib.Path) -> BinaryIO:
    if not path.exists():
        raise InputError(f"{path} is missing: prepare or download it again")
    return open_regular(path)


def _header(path: pathlib.Path, file: BinaryIO) -> tuple[int, int]:
    try:
        header, size = file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror}): check the disk") from e
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
    if count < 0 or size != want:
        what = "is truncated" if size < want else "is longer than its header says"
        raise InputError(
            f"{path} {what}: {size} bytes, but {count} tokens take {want}; prepare or download it "
            "again"
        )
    return version, count


def _which(path: pathlib.Path) -> str:
    return f"python -m t6jax.data.verify {path.parent} says which of the two is damaged"


def _locate(ends: np.ndarray, index: int) -> tuple[int, int]:
    """(shard, index in it) of the index-th item of all; ends: running totals of items per shard."""
    shard = int(np.searchsorted(ends, index, side="right"))
    return shard, index - (int(ends[shard - 1]) if shard else 0)
