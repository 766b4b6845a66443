"""Checksums of all files of a folder, in one file of it: how a checkpoint's step knows that it is
what was written.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import threading
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Self

from t6jax.sealed_json import unsealed, write_sealed

NAME = "checksums.json"
BLOCK = 1 << 24  # bytes that each checksum covers
_PIECE = 1 << 18  # bytes read at a time, which stay in a core's cache until they are counted
THREADS = min(8, os.cpu_count() or 1)  # zlib takes some 1.3 GB/s in each


class ChecksumError(ValueError):
    """A file is not what was written; the message names it."""


@dataclasses.dataclass(frozen=True)
class Checksums:
    """What a folder holds.

    about: what the folder says of itself, plain values.
    files: name -> (size, CRC-32 of each BLOCK bytes).
    """

    about: dict[str, Any]
    files: dict[str, tuple[int, list[int]]]

    @classmethod
    def read(cls, folder: pathlib.Path) -> Self | None:
        """Those of a folder; None if it has none.

        Raises:
            ChecksumError: the file of checksums is damaged.
        """
        path = folder / NAME
        if not path.exists():
            return None
        data = path.read_bytes()
        try:
            values = unsealed(data)
        except ValueError as e:
            raise ChecksumError(f"{NAME} {e}") from e
        return cls(values["about"], {name: tuple(file) for name, file in values["files"].items()})

    def write(self, folder: pathlib.Path) -> None:
        """Writes them into the folder, with a checksum of their own."""
        write_sealed(folder / NAME, {"about": self.about, "files": self.files})

    def verify(
        self,
        folder: pathlib.Path,
        *,
        within: Iterable[str] = ("",),
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Compares files with their checksums.

        Args:
            within: prefixes of the files' names to compare.
            share: (i, n): only every n-th block, from the i-th on, for n processes that share the
                work.

        Raises:
            ChecksumError: a file is missing, or is not what was written.
        """
        prefixes, first, count = tuple(within), *share
        blocks = []
        for name in sorted(self.files):
            size, sums = self.files[name]
            if not name.startswith(prefixes):
                continue
            path = folder / name
            if not path.is_file():
                raise ChecksumError(f"{name} is missing")
            if path.stat().st_size != size:
                raise ChecksumError(f"{name} has {path.stat().st_size} bytes, not {size}")
            blocks += [(name, number, want) for number, want in enumerate(sums)]

        def check(block: tuple[str, int, int]) -> None:
            name, number, want = block
            if block_checksum(folder / name, number) != want:
                start = number * BLOCK
                raise ChecksumError(
                    f"{name} is not what was written: the checksum of its bytes from {start} on "
                    "differs"
                )

        with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(check, blocks[first::count]))


class Hasher:
    """Takes the checksums of a folder's files in the background, while others are still written.

    A file is read once it stops growing. If it changes after all, it is read again at the end.
    """

    def __init__(self, folder: pathlib.Path, interval: float = 0.3):
        self._folder, self._interval = folder, interval
        # path -> (inode, size, time of change), checksums
        self._found: dict[pathlib.Path, tuple[tuple, list[int]]] = {}
        self._done = threading.Event()
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self, folder: pathlib.Path, about: Mapping[str, Any]) -> Checksums:
        """The checksums of all files, after nothing more is written.

        Args:
            folder: the folder, which may have another name by now, as those within it.
            about: what the folder says of itself.
        """
        self._done.set()
        self._thread.join()
        by_file = dict(self._found.values())
        files = {}
        for path in _files(folder):
            state = _state(path)
            files[path.relative_to(folder).as_posix()] = (
                state[1],
                by_file[state] if state in by_file else self._checksums(path, state[1]),
            )
        self._threads.shutdown()
        return Checksums(dict(about), files)

    def close(self) -> None:
        """Stops, whatever was found."""
        self._done.set()
        self._thread.join()
        self._threads.shutdown()

    def _run(self) -> None:
        before: dict[pathlib.Path, tuple] = {}
        while not self._done.wait(self._interval):
            try:
                now = {path: _state(path) for path in _files(self._folder)}
                # small files cost nothing at the end
                steady = {p: s for p, s in now.items() if before.get(p) == s and s[1] >= _PIECE}
                before = now
                for path, state in steady.items():
                    if path not in self._found or self._found[path][0] != state:
                        self._found[path] = state, self._checksums(path, state[1])
                    if self._done.is_set():
                        return
            except OSError:  # a folder or file that was renamed meanwhile
                continue

    def _checksums(self, path: pathlib.Path, size: int) -> list[int]:
        blocks = range(-(-size // BLOCK))
        return list(self._threads.map(lambda number: block_checksum(path, number), blocks))


def block_checksum(path: pathlib.Path, number: int) -> int:
    """The CRC-32 of the number-th BLOCK bytes of a file."""
    found, buffer = 0, memoryview(bytearray(_PIECE))
    with path.open("rb", buffering=0) as file:
        file.seek(number * BLOCK)
        for _ in range(BLOCK // _PIECE):
            read = file.readinto(buffer)
            if not read:
                break
            found = zlib.crc32(buffer[:read], found)
    return found


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / NAME)


def _state(path: pathlib.Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
