"""Documents in Parquet and JSONL files.

datatrove's readers are not used: they hand a task whole files, of which FineWeb-Edu's sample of 10
billion tokens has 14, and pass over what is damaged with a line in the log.
"""

import contextlib
import functools
import io
import json
from collections.abc import Iterable, Iterator
from typing import IO, Any

from t6jax.data.remote import HUB, is_remote, opened, reading
from t6jax.errors import InputError

COLUMN = "text"
ROWS = 1000  # read at once
HUB_BLOCK = (
    2**24
)  # bytes of a Parquet file asked for at once: the hub counts requests, 10 a second without a token


def parquet_ranges(
    folder: str, path: str, size: int, unit_bytes: int
) -> list[tuple[int, int, int]]:
    """(first row group, end, bytes of text) of the stretches of a Parquet file with about
    unit_bytes of text.
    """
    metadata = _metadata(folder, path)
    column = _text_column(metadata)
    if column is None:
        raise InputError(f"{folder}/{path} has no column {COLUMN!r}")
    sizes = [
        metadata.row_group(i).column(column).total_uncompressed_size
        for i in range(metadata.num_row_groups)
    ]
    return runs(sizes, unit_bytes)


def jsonl_ranges(folder: str, path: str, size: int, unit_bytes: int) -> list[tuple[int, int, int]]:
    """(first byte, end, bytes of text) of the stretches of a JSONL file; of a compressed one, the
    whole.
    """
    if not size:
        return []
    if not path.endswith(".jsonl"):
        return [(0, size, size)]
    return [
        (start, min(start + unit_bytes, size), min(unit_bytes, size - start))
        for start in range(0, size, unit_bytes)
    ]


def runs(sizes: Iterable[int], least: int) -> list[tuple[int, int, int]]:
    """(start, stop, size) of runs of consecutive items, each run closed as soon as it has the least
    size.
    """
    out, start, stop, total = [], 0, 0, 0
    for size in sizes:
        stop, total = stop + 1, total + size
        if total >= least:
            out.append((start, stop, total))
            start, total = stop, 0
    return [*out, (start, stop, total)] if stop > start else out


def read_parquet(folder: str, path: str, start: int, stop: int) -> Iterator[bytes | None]:
    """The texts of row groups start to stop."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata, options = (_metadata_of_last if is_remote(folder) else _metadata)(folder, path), {}
    if folder.startswith(HUB):  # the file ends, for what is read ahead, where the stretch does
        last = metadata.row_group(stop - 1).column(_text_column(metadata))
        begin = last.dictionary_page_offset or last.data_page_offset
        options = {"block_size": HUB_BLOCK, "size": begin + last.total_compressed_size}
    with (
        reading(folder, path),
        opened(folder).open(path, "rb", **options) as f,
        pq.ParquetFile(
            f, metadata=metadata, pre_buffer=False
        ) as file,  # in order: what is read ahead is used
    ):
        for batch in file.iter_batches(ROWS, row_groups=[*range(start, stop)], columns=[COLUMN]):
            yield from batch.column(0).cast(pa.large_string()).cast(pa.large_binary()).to_pylist()


def read_jsonl(folder: str, path: str, start: int, stop: int) -> Iterator[bytes | None]:
    """The texts of the lines that begin at bytes start to stop; of a compressed file, all."""
    with reading(folder, path), _open_lines(folder, path) as file:
        compressed = not path.endswith(".jsonl")
        at = start
        if start:  # what the stretch before ends with
            file.seek(start - 1)
            at += len(file.readline()) - 1
        while at < stop or compressed:
            line = file.readline()
            if not line:
                break
            if line.strip():
                try:
                    text = json.loads(line)[COLUMN]
                    yield text if text is None else _utf8(text)
                except (ValueError, KeyError, TypeError, AttributeError) as e:
                    what = f"no JSON object with {COLUMN!r} in the line at byte {at}"
                    raise InputError(
                        f"{folder}/{path} is damaged: {what}; download it again"
                    ) from e
            at += len(line)


def _metadata(folder: str, path: str) -> Any:
    import pyarrow.parquet as pq

    with reading(folder, path), opened(folder).open(path, "rb") as f:
        return pq.read_metadata(f)


_metadata_of_last = functools.lru_cache(1)(
    _metadata
)  # of a file of 2 GB it is megabytes, and its units come one by one


def _text_column(metadata: Any) -> int | None:
    return next(
        (i for i in range(metadata.num_columns) if metadata.schema.column(i).path == COLUMN), None
    )


@contextlib.contextmanager
def _open_lines(folder: str, path: str) -> Iterator[IO[bytes]]:
    with opened(folder).open(path, "rb") as f:
        if path.endswith(".jsonl"):
            yield f
            return
        import pyarrow as pa

        with pa.CompressedInputStream(f, "gzip" if path.endswith(".gz") else "zstd") as stream:
            yield io.BufferedReader(stream, 2**20)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except (
        UnicodeEncodeError
    ):  # half a surrogate pair, which JSON can spell: U+FFFD, as tiktoken has it
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
