"""The files of a local source, and what their names say of their format."""

import os
import pathlib
import stat
from collections.abc import Collection, Iterator

from t6jax.errors import InputError

PARQUET, JSONL, TEXT = "parquet", "jsonl", "text"
SUFFIXES = {PARQUET: (".parquet",), JSONL: (".jsonl", ".ndjson")}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


def files_in(root: pathlib.Path, left_out: Collection[str] = ()) -> list[tuple[str, int]]:
    """(name in the folder, size) of a folder's files, sorted; a file is the only one of itself.

    Hidden files and folders, and what is no regular file, are passed over. Links are followed; a
    folder that several lead to is read once.

    Args:
        root: the file or folder.
        left_out: absolute paths of folders that are not part of the source.

    Raises:
        InputError: for a link to nothing, and for what cannot be listed.
    """
    try:
        if not root.is_dir():
            return [(root.name, root.stat().st_size)]
        return sorted(_walk(root, {*left_out}))
    except OSError as e:
        raise InputError(
            f"{e.filename or root} cannot be read ({e.strerror}): check its permissions"
        ) from e


def _walk(root: pathlib.Path, left_out: set[str]) -> Iterator[tuple[str, int]]:
    seen: set[tuple[int, int]] = set()
    folders, linked = [(root, "")], []
    while folders or linked:
        # linked ones last: a folder goes by its own name where it is in the source itself
        folder, prefix = folders.pop() if folders else linked.pop(0)
        own = folder.stat()
        if (own.st_dev, own.st_ino) in seen or str(folder.absolute()) in left_out:
            continue
        seen.add((own.st_dev, own.st_ino))
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            found = _stat(path)
            if stat.S_ISDIR(found.st_mode):
                (linked if path.is_symlink() else folders).append((path, f"{prefix}{path.name}/"))
            elif stat.S_ISREG(found.st_mode):
                yield prefix + path.name, found.st_size


def _stat(path: pathlib.Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as e:
        if not path.is_symlink():
            raise
        raise InputError(
            f"{path} is a link to {str(path.readlink())!r}, which cannot be read ({e.strerror}): "
            "restore that, or remove the link"
        ) from e


def kind_of(name: str, folder: str = "") -> str:
    """The format of a file: "parquet", "jsonl" or "text".

    Its own suffix says it, or that of a folder above it: Spark writes x.jsonl/part-00000. Upper and
    lower case are the same.

    Args:
        name: of the file, in its source.
        folder: the source, a path or URL.
    """
    *parents, own = name.lower().split("/")
    plain = own.removesuffix(_compressed_suffix(own))
    for kind, suffixes in SUFFIXES.items():
        if plain.endswith(suffixes):
            return kind
    if plain.endswith(".json") and plain != own:  # as C4 has it
        return JSONL
    if own.startswith("_"):  # _SUCCESS and the like
        return TEXT
    for parent in reversed([folder.lower().rstrip("/").rpartition("/")[2], *parents]):
        for kind, suffixes in SUFFIXES.items():
            if parent.endswith(suffixes):
                return kind
    return TEXT


def compression_of(name: str) -> str | None:
    """What a JSONL file is compressed by: "gzip", "zstd" or "bz2"; None: nothing."""
    return COMPRESSIONS.get(_compressed_suffix(name.lower()))


def _compressed_suffix(name: str) -> str:
    return next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
