"""Text files: the user's, or those of the running Python."""

import hashlib
import os
import pathlib
import sysconfig
from collections.abc import Callable, Iterator
from typing import NamedTuple

from t6jax.errors import InputError

PYTHON = "python"


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


def documents(source: str) -> list[Document]:
    """The documents of a source, in a fixed order.

    Hidden files and folders, empty files, and files with a NUL byte (no text) are skipped.

    Args:
        source: "python", or the path of a text file or of a folder of them.

    Raises:
        InputError: if there is no such file or folder, or no text in it.
    """
    if source == PYTHON:
        found = list(_python_documents())
    else:
        root = pathlib.Path(source)
        if not root.exists():
            raise InputError(f"data.source={source!r}: there is no such file or folder")
        files = (
            [root]
            if root.is_file()
            else sorted(p for p in root.rglob("*") if p.is_file() and not _hidden(p, root))
        )
        found = [
            _file(p, str(p.relative_to(root)) if root.is_dir() else p.name)
            for p in files
            if _is_text(p)
        ]
    if not found:
        raise InputError(f"data.source={source!r} holds no text")
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
        if not installed and _is_text(path):
            yield _file(path, str(name))


def _file(path: pathlib.Path, name: str) -> Document:
    return Document(name, path.stat().st_size, path.read_bytes)


def _hidden(path: pathlib.Path, root: pathlib.Path) -> bool:
    return any(name.startswith(".") for name in path.relative_to(root).parts)


def _is_text(path: pathlib.Path) -> bool:
    with path.open("rb") as f:
        head = f.read(8192)
    return bool(head) and b"\0" not in head


def _cut(
    document: Document, validation_fraction: float, validation_bytes: int | None
) -> tuple[list[Document], list[Document]]:
    data = document.read()
    wanted = len(data) * validation_fraction
    if validation_bytes is not None:
        wanted = min(wanted, validation_bytes)
    middle = len(data) - round(wanted)
    newline = data.rfind(b"\n", 0, middle)
    middle = newline + 1 if newline > 0 else middle
    return [_in_memory(document.name, data[:middle])], [
        _in_memory(f"{document.name} (end)", data[middle:])
    ]


def _in_memory(name: str, data: bytes) -> Document:
    return Document(name, len(data), lambda: data)
