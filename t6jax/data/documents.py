"""Text files: the user's, or those of the running Python."""

import functools
import hashlib
import json
import os
import pathlib
import sysconfig
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from t6jax.data.listing import files_in
from t6jax.errors import InputError

PYTHON = "python"
HEAD = 8192  # bytes by which a file is known to be text
LONGEST_LINE = 2**20  # of a file that is known to be JSON lines
BOM, UTF_16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


class Document(NamedTuple):
    """A named text.

    Attributes:
        name: unique in its source.
        size: in bytes.
        read: returns the bytes, which are meant to be UTF-8.
    """

    name: str
    size: int
    read: Callable[[], bytes]


def documents(source: str, left_out: Collection[str] = ()) -> list[Document]:
    """The documents of a source, in a fixed order.

    Hidden files and folders, empty files, and files with a NUL byte (no text) are skipped. Links
    are followed.

    Args:
        source: "python", or the path of a text file or of a folder of them.
        left_out: absolute paths of folders that are not part of the source.

    Raises:
        InputError: if there is no such file or folder, no text in it, or text in a form that would
            be read wrongly (JSON lines, UTF-16).
    """
    if source == PYTHON:
        return [*_python_documents()]
    root = pathlib.Path(source)
    if not root.exists():
        raise InputError(f"data.source={source!r}: there is no such file or folder")
    # by their parts: a/b before a.b
    listed = sorted(files_in(root, left_out), key=lambda file: file[0].split("/"))
    found, json_lines, other = [], [], []
    for name, size in listed:
        path = root / name if root.is_dir() else root
        head = _head(path)
        if head.startswith(UTF_16):
            raise InputError(f"{path} is UTF-16: save it as UTF-8")
        if head and b"\0" not in head:
            found.append(Document(name, size, functools.partial(_read, path)))
            json_lines += [found[-1]] if _has_json_lines(path, head) else []
        elif head:
            other.append(path)
    if not found:
        why = f" ({other[0]} has NUL bytes: unpack it if it is compressed)" if other else ""
        raise InputError(f"data.source={source!r} holds no text{why}")
    if 2 * sum(d.size for d in json_lines) > sum(d.size for d in found):
        raise InputError(
            f"data.source={source!r}: {json_lines[0].name} holds JSON lines, whose texts are read "
            "if its name, or that of its folder, ends with .jsonl: rename it, or make a link"
        )
    return found


def split(
    found: list[Document], validation_fraction: float, validation_bytes: int | None = None
) -> tuple[list[Document], list[Document]]:
    """Divides documents into training and validation.

    Validation documents are drawn by a hash of their names, so the draw depends on names and sizes
    alone. A single document is cut in two, its end for validation.

    Args:
        found: the documents.
        validation_fraction: share of their bytes for validation.
        validation_bytes: the most bytes for validation; None: no limit.

    Returns:
        (training, validation) documents.
    """
    if not 0 < validation_fraction < 1:
        raise InputError(
            f"data.validation_fraction must lie between 0 and 1; got {validation_fraction}"
        )
    if len(found) == 1:
        return _cut(found[0], validation_fraction, validation_bytes)
    wanted = validation_fraction * sum(d.size for d in found)
    if validation_bytes is not None:
        wanted = min(wanted, validation_bytes)
    validation: set[str] = set()
    size = 0
    for document in sorted(found, key=lambda d: hashlib.sha256(os.fsencode(d.name)).digest()):
        # one that is larger than what is missing is for training, unless there is no other
        if size + document.size <= wanted:
            validation.add(document.name)
            size += document.size
    if not validation:
        validation.add(min(found, key=lambda d: (d.size, d.name)).name)
    return [d for d in found if d.name not in validation], [
        d for d in found if d.name in validation
    ]


def _python_documents() -> Iterator[Document]:
    """The reference documentation that ships with Python, by topic, and its standard library."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        data = text.encode()
        yield Document(f"pydoc/{name}", len(data), lambda data=data: data)
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        installed = {"site-packages", "dist-packages"} & {*name.parts}
        head = b"" if installed else _head(path)
        if head and b"\0" not in head:
            yield Document(str(name), path.stat().st_size, functools.partial(_read, path))


def _head(path: pathlib.Path) -> bytes:
    try:
        with path.open("rb") as f:
            return f.read(HEAD)
    except OSError as e:
        raise _unreadable(path, e) from e


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise _unreadable(path, e) from e


def _unreadable(path: pathlib.Path, e: OSError) -> InputError:
    return InputError(f"{path} cannot be read ({e.strerror}): check it and its permissions")


def _has_json_lines(path: pathlib.Path, head: bytes) -> bool:
    """Whether a text file that begins like this has a JSON object in each line."""
    if not head.removeprefix(BOM).lstrip().startswith(b"{"):
        return False
    with path.open("rb") as f:
        lines = f.read(LONGEST_LINE).removeprefix(BOM).split(b"\n")
        more = f.read(1)
    if more:
        lines.pop()  # it is cut
    lines = [line for line in lines if line.strip()]
    return len(lines) > (0 if more else 1) and all(map(_is_object, lines[:2]))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _cut(
    document: Document, validation_fraction: float, validation_bytes: int | None
) -> tuple[list[Document], list[Document]]:
    data = document.read()
    wanted = len(data) * validation_fraction
    if validation_bytes is not None:
        wanted = min(wanted, validation_bytes)
    middle = len(data) - max(1, round(wanted))  # of the shortest text too, something is left
    newline = data.rfind(b"\n", 0, middle)
    middle = newline + 1 if newline > 0 else middle
    while middle > 0 and data[middle] & 0xC0 == 0x80:  # inside a character
        middle -= 1
    return [_in_memory(document.name, data[:middle])], [
        _in_memory(f"{document.name} (end)", data[middle:])
    ]


def _in_memory(name: str, data: bytes) -> Document:
    return Document(name, len(data), lambda: data)
