"""Documents in Parquet and JSONL files.

datatrove's readers are not used: they give a task whole files, of which FineWeb-Edu's sample of 10
billion tokens has 14, and they skip damaged records with a line in the log.
"""

import contextlib
import functools
import io
import json
from collections.abc import Iterable, Iterator
from typing import IO, Any

from t6jax.data.documents import BOM
from t6jax.data.listing import compression_of
from t6jax.data.remote import HUB, is_remote, opened, reading, shown
from t6jax.errors import InputError
from t6jax.extras import needs

TEXT_KEY = "text"
ROWS = 1000  # of a Parquet file, read at once
# Bytes of a Parquet file per request: the hub limits the number of requests, to 10 a second without
# a token.
HUB_BLOCK = 2**24


def parquet_ranges(
    folder: str, path: str, size: int, unit_bytes: int, text_key: str = TEXT_KEY
) -> list[tuple[int, int, int]]:
    """Divides a Parquet file into runs of row groups with about unit_bytes of text each.

    Returns:
        (first row group, end, bytes of text) of each run.

    Raises:
        InputError: if the file has no column text_key, or one without strings.
    """
    metadata = _metadata(folder, path)
    schema = metadata.schema.to_arrow_schema()
    if text_key not in schema.names:
        raise InputError(
            f"{shown(folder, path)} has no column {text_key!r}; "
            f"{_other_keys('columns', schema.names)}"
        )
    if not _is_text(schema.field(text_key).type):
        raise InputError(
            f"{shown(folder, path)}: the column {text_key!r} holds no strings, but "
            f"{schema.field(text_key).type}; {_other_keys('columns', schema.names)}"
        )
    column = _text_column(metadata, text_key)
    sizes = [
        metadata.row_group(i).column(column).total_uncompressed_size
        for i in range(metadata.num_row_groups)
    ]
    return runs(sizes, unit_bytes)


def jsonl_ranges(
    folder: str, path: str, size: int, unit_bytes: int, text_key: str = TEXT_KEY
) -> list[tuple[int, int, int]]:
    """Divides a JSONL file into ranges of unit_bytes; a compressed file is one range.

    Returns:
        (first byte, end, bytes of text) of each range.
    """
    if not size:
        return []
    if compression_of(path):
        return [(0, size, size)]
    return [
        (start, min(start + unit_bytes, size), min(unit_bytes, size - start))
        for start in range(0, size, unit_bytes)
    ]


def runs(sizes: Iterable[int], least: int) -> list[tuple[int, int, int]]:
    """Groups consecutive items into runs; a run ends as soon as it has the least size.

    Returns:
        (start, stop, size) of each run.
    """
    out, start, stop, total = [], 0, 0, 0
    for size in sizes:
        stop, total = stop + 1, total + size
        if total >= least:
            out.append((start, stop, total))
            start, total = stop, 0
    return [*out, (start, stop, total)] if stop > start else out


def read_parquet(
    folder: str, path: str, start: int, stop: int, text_key: str = TEXT_KEY
) -> Iterator[bytes | None]:
    """The texts of row groups start to stop."""
    with needs("data"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    metadata, options = (_metadata_of_last if is_remote(folder) else _metadata)(folder, path), {}
    if folder.startswith(HUB):  # fsspec reads ahead, but not past `size`
        last = metadata.row_group(stop - 1).column(_text_column(metadata, text_key))
        begin = last.dictionary_page_offset or last.data_page_offset
        options = {"block_size": HUB_BLOCK, "size": begin + last.total_compressed_size}
    with (
        reading(folder, path),
        opened(folder).open(path, "rb", **options) as f,
        # without pre_buffer the file is read in order, so that what fsspec reads ahead is used
        pq.ParquetFile(f, metadata=metadata, pre_buffer=False) as file,
    ):
        for batch in file.iter_batches(ROWS, row_groups=[*range(start, stop)], columns=[text_key]):
            try:
                texts = batch.column(0).cast(pa.large_string())
            except pa.ArrowInvalid as e:  # of a binary column
                raise InputError(
                    f"{shown(folder, path)}: the column {text_key!r} holds what is not UTF-8 in "
                    f"row groups {start} to {stop - 1} ({e}): convert it"
                ) from e
            yield from texts.cast(pa.large_binary()).to_pylist()


def read_jsonl(
    folder: str, path: str, start: int, stop: int, text_key: str = TEXT_KEY
) -> Iterator[bytes | None]:
    """The texts of the lines that begin at bytes start to stop; of a compressed file, all lines.

    Raises:
        InputError: for a line that is no JSON object with a text under text_key.
    """
    with reading(folder, path), _open_lines(folder, path) as file:
        name, compressed = shown(folder, path), compression_of(path) is not None
        at = start
        if start:  # the line that the range before ends with
            file.seek(start - 1)
            at += len(file.readline()) - 1
        while at < stop or compressed:
            line = file.readline()
            if not line:
                break
            if at == 0 and line.startswith(BOM):
                at, line = len(BOM), line[len(BOM) :]
            if line.strip():
                yield _text(line, text_key, name, at)
            at += len(line)


def check_first_line(folder: str, path: str, text_key: str) -> None:
    """Raises InputError if the first line of a JSONL file has no text under text_key."""
    next(read_jsonl(folder, path, 0, 1, text_key), None)


def _text(line: bytes, text_key: str, name: str, at: int) -> bytes | None:
    where = f"the line at byte {at}"
    try:
        record = _JSON.decode(line.decode().strip())
    except UnicodeDecodeError as e:
        raise InputError(
            f"{name}: {where} is not UTF-8 at byte {at + e.start} (0x{line[e.start]:02x}): convert "
            "the file to UTF-8, or mend the line"
        ) from e
    except RecursionError as e:
        raise InputError(
            f"{name}: {where} nests JSON deeper than can be read: remove what is nested"
        ) from e
    except ValueError as e:
        remedy = "mend or remove the line" if line.endswith(b"\n") else "it is cut: get it again"
        raise InputError(f"{name} is damaged: no JSON object in {where} ({e}); {remedy}") from e
    if not isinstance(record, dict):
        raise InputError(f"{name}: {where} is no JSON object, but {type(record).__name__}")
    if text_key not in record:
        raise InputError(
            f"{name} has no key {text_key!r} in {where}; {_other_keys('keys', record)}"
        )
    text = record[text_key]
    if text is None:
        return None
    if not isinstance(text, str):
        raise InputError(
            f"{name}: the value of {text_key!r} in {where} is no string, but {type(text).__name__}"
        )
    try:
        return text.encode()
    except (
        UnicodeEncodeError
    ):  # half a surrogate pair, which JSON can spell: U+FFFD, as in tiktoken
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _int(digits: str) -> int:
    """An integer; of more digits than Python reads, which no text has, its first ones."""
    return int(digits[:4000])


_JSON = json.JSONDecoder(parse_int=_int)


def _other_keys(what: str, keys: Iterable[str]) -> str:
    return (
        f"its {what} are {', '.join(keys) or 'none'}: name the one with the text by --text_key, or "
        "data.text_key in a config"
    )


def _metadata(folder: str, path: str) -> Any:
    with needs("data"):
        import pyarrow.parquet as pq

    with reading(folder, path), opened(folder).open(path, "rb") as f:
        return pq.read_metadata(f)


# For a file of 2 GB the metadata are megabytes, and its units are read one after another.
_metadata_of_last = functools.lru_cache(1)(_metadata)


def _is_text(kind: Any) -> bool:
    """Whether a column of this Arrow type holds strings, or nothing at all."""
    with needs("data"):
        from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        fits(kind)
        for fits in (
            types.is_string,
            types.is_large_string,
            types.is_string_view,
            types.is_binary,
            types.is_large_binary,
            types.is_null,
        )
    )


def _text_column(metadata: Any, text_key: str) -> int | None:
    columns = (metadata.schema.column(i).path for i in range(metadata.num_columns))
    return next((i for i, name in enumerate(columns) if name == text_key), None)


@contextlib.contextmanager
def _open_lines(folder: str, path: str) -> Iterator[IO[bytes]]:
    compression = compression_of(path)
    with opened(folder).open(path, "rb") as f:
        if compression is None:
            yield f
            return
        with needs("data"):
            import pyarrow as pa
        with pa.CompressedInputStream(f, compression) as stream:
            yield io.BufferedReader(stream, 2**20)
