"""Any source of text as a plan: units of work, in a fixed order, that can be read independently.

A unit is a run of text files, some row groups of a Parquet file, or a byte range of a JSONL file.
The plan depends on the source alone, so the tokens do not depend on which worker reads which unit,
or when.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from t6jax.data import records, remote
from t6jax.data.documents import PYTHON, Document, documents, split
from t6jax.data.listing import JSONL, PARQUET, TEXT, files_in, kind_of
from t6jax.errors import InputError

# About how much text a unit has: seconds of work, so that an interruption loses little.
UNIT_BYTES = 2**24
# How many times larger units are over a network, where opening a file costs a few megabytes.
REMOTE_UNITS = 8
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Unit(NamedTuple):
    """What one worker reads at a time.

    Attributes:
        path: of the file, in the source's folder; empty for text files.
        start, stop: row groups, bytes, or indices of text files.
        size: about how many bytes of text it has.
    """

    path: str
    start: int
    stop: int
    size: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a source is read.

    Attributes:
        kind: "parquet", "jsonl" or "text".
        folder: where the source was found: a path or a URL, on the Hugging Face hub with its
            commit.
        fingerprint: a hash of its files' names and sizes.
        validation_units: how many of the units, from the first, are the validation text; 0: the
            first shard is.
        validation_fraction, validation_bytes, text_key, left_out: as given to `make_plan`.
    """

    kind: str
    folder: str
    fingerprint: str
    validation_units: int
    validation_fraction: float
    validation_bytes: int
    units: tuple[Unit, ...]
    text_key: str = records.TEXT_KEY
    left_out: tuple[str, ...] = ()

    @property
    def revision(self) -> str:
        """The commit of a data set on the Hugging Face hub; empty for other sources."""
        if not self.folder.startswith(remote.HUB):
            return ""
        return self.folder.partition("@")[2].partition("/")[0]

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Plan":
        """The inverse of to_dict."""
        units = tuple(Unit(*u) for u in values["units"])
        return cls(**dict(values) | {"units": units, "left_out": tuple(values["left_out"])})


def make_plan(
    source: str,
    subset: str = "",
    *,
    validation_fraction: float,
    validation_bytes: int,
    unit_bytes: int = UNIT_BYTES,
    text_key: str = records.TEXT_KEY,
    left_out: Collection[pathlib.Path] = (),
) -> Plan:
    """Finds the files of a source and divides them into units.

    Args:
        source: "python", a file or folder, a URL that fsspec reads, or the name of a data set on
            the Hugging Face hub. In a folder with files of several kinds, Parquet files are
            preferred to JSONL, and JSONL to text.
        subset: a configuration of a data set on the hub, or a folder in the source.
        validation_fraction: share of the bytes of text files that is for validation, drawn by
            file.
        validation_bytes: the most text that is for validation.
        unit_bytes: about how much text a unit has.
        text_key: the key of JSONL, or the column of Parquet, that holds the text.
        left_out: folders that are not part of a local source.

    Raises:
        InputError: if the source does not exist, or holds no text.
    """
    if not 0 < validation_fraction < 1:
        raise InputError(
            f"data.validation_fraction must lie between 0 and 1; got {validation_fraction}"
        )
    if unit_bytes < 1:
        raise InputError(f"--unit_bytes must be at least 1; got {unit_bytes}")
    excluded = tuple(str(folder.absolute()) for folder in left_out)
    kind, folder, files = _find(source, subset, text_key, excluded)
    if kind == TEXT:
        if text_key != records.TEXT_KEY:
            raise InputError(
                f"--text_key={text_key} is for .jsonl and .parquet, but {remote.shown(source)!r} "
                "is plain text: leave it out"
            )
        return _text_plan(folder, validation_fraction, validation_bytes, unit_bytes, excluded)
    units = _record_units(kind, folder, files, unit_bytes, text_key)
    if not units:
        raise InputError(f"data.source={remote.shown(source)!r} holds no text")
    return Plan(
        kind,
        folder,
        _fingerprint(files),
        0,
        validation_fraction,
        validation_bytes,
        tuple(units),
        text_key,
        excluded,
    )


def read_texts(source: str, text_key: str = records.TEXT_KEY) -> Iterator[bytes]:
    """All texts of a source, UTF-8, in order, as training reads them.

    Args:
        source, text_key: as `make_plan` takes them.

    Raises:
        InputError: if the source does not exist, holds no text, or cannot be read.
    """
    kind, folder, files = _find(source, "", text_key, ())
    if kind == TEXT:
        texts = (document.read() for document in documents(folder))
    else:
        units = _record_units(kind, folder, files, UNIT_BYTES, text_key)
        texts = (text for unit in units for text in _records(kind, folder, unit, text_key) if text)
    empty = True
    for text in texts:
        empty = False
        yield text
    if empty:
        raise InputError(f"data.source={remote.shown(source)!r} holds no text")


def read_unit(plan: Plan, unit: Unit) -> Iterator[bytes]:
    """The texts of a unit's documents, UTF-8, in order. Documents without text are skipped.

    Raises:
        InputError: naming the file, if it cannot be read to its end.
    """
    if plan.kind == TEXT:
        found = _documents(
            plan.folder,
            plan.validation_fraction,
            plan.validation_bytes,
            plan.left_out,
            plan.fingerprint,
        )
        texts = (document.read() for document in found[unit.start : unit.stop])
    else:
        texts = _records(plan.kind, plan.folder, unit, plan.text_key)
    return (text for text in texts if text)


def _records(kind: str, folder: str, unit: Unit, text_key: str) -> Iterator[bytes | None]:
    """The texts of a unit of a Parquet or JSONL file."""
    read = records.read_parquet if kind == PARQUET else records.read_jsonl
    return read(folder, *unit[:3], text_key)


def _record_units(
    kind: str, folder: str, files: list[tuple[str, int]], unit_bytes: int, text_key: str
) -> list[Unit]:
    """The units of Parquet or JSONL files, in order."""
    if remote.is_remote(folder):
        unit_bytes *= REMOTE_UNITS
    ranges_of = records.parquet_ranges if kind == PARQUET else records.jsonl_ranges
    with ThreadPoolExecutor(16) as pool:  # over a network each file takes a while to open
        ranges = pool.map(
            lambda f: _first(lambda: ranges_of(folder, f[0], f[1], unit_bytes, text_key)), files
        )
        return [Unit(name, *r) for (name, _), rs in zip(files, ranges, strict=True) for r in rs]


_first = functools.partial(remote.with_retries, attempts=remote.FIRST_ATTEMPTS)


def _find(
    source: str, subset: str, text_key: str, left_out: Collection[str]
) -> tuple[str, str, list[tuple[str, int]]]:
    """(kind of the files that are read, their folder, their names and sizes) of a source.

    Of text, the folder is what `documents` takes, and the files are all of them.
    """
    if not source:
        raise InputError(
            "data.source is empty: name a file, a folder, a URL or a data set (--source=. is the "
            "current folder)"
        )
    path = pathlib.Path(source, subset).expanduser()
    if source == PYTHON or path.exists():
        files = [] if source == PYTHON else files_in(path, left_out)
        kind = TEXT if source == PYTHON else _kind(files, str(path.absolute()))
        if kind == TEXT:
            return TEXT, PYTHON if source == PYTHON else str(path.absolute()), files
        folder = str((path.parent if path.is_file() else path).absolute())
    elif remote.is_remote(source):
        url = source.rstrip("/") + (f"/{subset}" if subset else "")
        folder = _first(lambda: remote.pinned(url))
        files = _first(lambda: remote.list_files(folder, ["**"]))
    elif HUB_NAME.fullmatch(source):
        folder, files = _first(lambda: remote.list_hub(source, subset))
    else:
        raise InputError(f"data.source={str(path)!r}: there is no such file or folder")
    kind = _kind(files, folder)
    if kind == TEXT:
        raise InputError(
            f"data.source={remote.shown(source)!r} holds no .parquet or .jsonl "
            f"file{f' for {subset!r}' if subset else ''}"
        )
    files = [(name, size) for name, size in files if kind_of(name, folder) == kind]
    if kind == JSONL:  # before anything is written; a Parquet file's columns are seen later
        _first(lambda: records.check_first_line(folder, files[0][0], text_key))
    return kind, folder, files


def _text_plan(
    source: str,
    validation_fraction: float,
    validation_bytes: int,
    unit_bytes: int,
    left_out: tuple[str, ...],
) -> Plan:
    training, validation = split(documents(source, left_out), validation_fraction, validation_bytes)
    units: list[Unit] = []
    for found in (validation, training):
        first = units[-1].stop if units else 0
        ranges = records.runs((d.size for d in found), unit_bytes)
        units += [Unit("", first + start, first + stop, size) for start, stop, size in ranges]
        validation_units = len(units) if found is validation else validation_units
    fingerprint = _fingerprint((d.name, d.size) for d in validation + training)
    return Plan(
        TEXT,
        source,
        fingerprint,
        validation_units,
        validation_fraction,
        validation_bytes,
        tuple(units),
        left_out=left_out,
    )


@functools.lru_cache(1)  # a worker reads many units
def _documents(
    source: str,
    validation_fraction: float,
    validation_bytes: int,
    left_out: tuple[str, ...],
    fingerprint: str,
) -> list[Document]:
    """The documents of a plan, by which its units count."""
    training, validation = split(documents(source, left_out), validation_fraction, validation_bytes)
    if _fingerprint((d.name, d.size) for d in validation + training) != fingerprint:
        raise InputError(
            f"the files of {source} changed while they are prepared: start again when nothing "
            "writes there"
        )
    return validation + training


def _kind(files: Iterable[tuple[str, int]], folder: str) -> str:
    kinds = {kind_of(name, folder) for name, _ in files}
    return next((kind for kind in (PARQUET, JSONL) if kind in kinds), TEXT)


def _fingerprint(files: Iterable[tuple[str, int]]) -> str:
    return hashlib.sha256(json.dumps([*files]).encode()).hexdigest()
