"""Files that are whole or absent, and locks between processes."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from t6jax.errors import InputError


def open_regular(path: pathlib.Path) -> BinaryIO:
    """Opens a file for reading.

    Raises:
        InputError: it is missing, cannot be opened, or is no regular file (reading a FIFO would
            wait for ever).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as e:
        raise InputError(f"{path} is missing") from e
    except OSError as e:
        raise InputError(f"{path} cannot be opened ({e.strerror}): check its permissions") from e
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is no regular file: remove it, or name another")
    return os.fdopen(descriptor, "rb")


def read_regular(path: pathlib.Path) -> bytes:
    """The bytes of a file. Raises InputError as `open_regular` does, or if it cannot be read."""
    with open_regular(path) as file:
        try:
            return file.read()
        except OSError as e:
            raise InputError(f"{path} cannot be read ({e.strerror}): check the disk") from e


@contextlib.contextmanager
def atomic_file(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a binary file for writing that replaces `path` when the block ends.

    The bytes go to a temporary file in the same folder, are made durable, and the file is then
    renamed. Readers, and a machine that loses power, see the old content or the new one, never a
    part of it. If the block raises, `path` is left as it was.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: pathlib.Path, content: bytes | memoryview | str) -> None:
    """Writes a whole file as `atomic_file` does; text is encoded as UTF-8.

    Raises:
        InputError: the disk is full or read-only, or the folder may not be written to.
    """
    with writing(path), atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: the file cannot be read, or holds anything else.
    """
    data = read_regular(path)
    try:
        return json_object(data)
    except ValueError as e:
        raise InputError(f"{path} {e}") from e


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that a file's bytes hold. Raises ValueError, which says what is wrong."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as e:  # RecursionError: nested too deep
        raise ValueError(f"is not valid JSON: {e}") from e
    if not isinstance(values, dict):
        raise ValueError(f"must hold a JSON object, not {type(values).__name__}")
    return values


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of writing a file or folder into InputErrors that name it and what to do."""
    try:
        yield
    except OSError as e:
        raise InputError(
            f"{e.filename or path} cannot be written ({e.strerror or e}): free space or check "
            "permissions, and give the same command again"
        ) from e


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Creates a folder to fill that is renamed to `path` when the block ends.

    If the block raises, the folder is removed.

    Args:
        path: a folder that does not exist yet, or is empty.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def exclusive_lock(path: pathlib.Path, message: str) -> Iterator[bool]:
    """Holds the lock file `path`, which is created if missing, until the block ends.

    The lock also ends with the process, however that happens. It holds between the processes of
    one machine; on network file systems it depends on the mount.

    Yields:
        Whether the locked file is still at `path`: another process may just have moved it.

    Raises:
        InputError: with `message`, if another process holds the lock.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise InputError(message) from e
        try:
            here = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except FileNotFoundError:
            here = False
        yield here
