"""Documents in Parquet and JSONL files, on disk or wherever fsspec reaches (the Hugging Face hub: hf://datasets/NAME).

Files are listed and opened by datatrove's DataFolder. Its readers are not used: they hand a task whole files, of which
FineWeb-Edu's sample of 10 billion tokens has 14, and pass over what is damaged with a line in the log.
"""

import contextlib
import functools
import io
import json
from collections.abc import Iterable, Iterator
from typing import IO, Any

from t6jax.errors import InputError

COLUMN = "text"
ROWS = 1000  # read at once


def list_files(folder: str, patterns: list[str]) -> list[tuple[str, int]]:
    """(name, size) of all files of a folder that match one of the patterns, sorted by name."""
    try:
        opened = _folder(folder)
        found = [opened.glob(pattern, detail=True) for pattern in patterns]
    except Exception as e:  # each file system has errors of its own
        raise InputError(f"{folder} cannot be listed ({_brief(e)}): check the name and the connection") from e
    files = {name: info["size"] for infos in found for name, info in infos.items() if info["type"] == "file"}
    return sorted(files.items())


def list_hub(name: str, subset: str) -> list[tuple[str, int]]:
    """The files of a data set on the Hugging Face hub, or of its configuration `subset`, as its card lists them."""
    from huggingface_hub import HfApi

    try:
        card = HfApi().dataset_info(name, timeout=60).card_data
    except Exception as e:  # of the hub, or of the network below it
        raise InputError(
            f"data.source={name!r} is no local folder, and the Hugging Face hub has no answer for it ({_brief(e)}): check the "
            "name and the connection, or give a folder of its downloaded files"
        ) from e
    configurations = {c["config_name"]: c for c in (card.to_dict() if card else {}).get("configs") or []}
    if subset and subset not in configurations:
        raise InputError(f"{name} has no subset {subset!r}; it has {', '.join(configurations) or 'none'}")
    chosen = configurations.get(subset or "default")
    return list_files(f"hf://datasets/{name}", _patterns(chosen["data_files"]) if chosen else ["**"])


def parquet_ranges(folder: str, path: str, size: int, unit_bytes: int) -> list[tuple[int, int, int]]:
    """(first row group, end, bytes of text) of the stretches of a Parquet file with about unit_bytes of text."""
    with _parquet(folder, path) as file:
        metadata = file.metadata
        if COLUMN not in metadata.schema.to_arrow_schema().names:
            raise InputError(f"{folder}/{path} has no column {COLUMN!r}")
        column = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == COLUMN)
        sizes = [metadata.row_group(i).column(column).total_uncompressed_size for i in range(metadata.num_row_groups)]
    return runs(sizes, unit_bytes)


def jsonl_ranges(folder: str, path: str, size: int, unit_bytes: int) -> list[tuple[int, int, int]]:
    """(first byte, end, bytes of text) of the stretches of a JSONL file; of a compressed one, the whole."""
    if not size:
        return []
    if not path.endswith(".jsonl"):
        return [(0, size, size)]
    return [(start, min(start + unit_bytes, size), min(unit_bytes, size - start)) for start in range(0, size, unit_bytes)]


def runs(sizes: Iterable[int], least: int) -> list[tuple[int, int, int]]:
    """(start, stop, size) of runs of consecutive items, each run closed as soon as it has the least size."""
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

    with _parquet(folder, path) as file:
        for batch in file.iter_batches(ROWS, row_groups=[*range(start, stop)], columns=[COLUMN]):
            yield from batch.column(0).cast(pa.large_string()).cast(pa.large_binary()).to_pylist()


def read_jsonl(folder: str, path: str, start: int, stop: int) -> Iterator[bytes | None]:
    """The texts of the lines that begin at bytes start to stop; of a compressed file, all."""
    with _reading(folder, path), _open_lines(folder, path) as file:
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
                    raise InputError(f"{folder}/{path} is damaged: {what}; download it again") from e
            at += len(line)


@contextlib.contextmanager
def _parquet(folder: str, path: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with _reading(folder, path), _folder(folder).open(path, "rb") as f, pq.ParquetFile(f) as file:
        yield file


@contextlib.contextmanager
def _open_lines(folder: str, path: str) -> Iterator[IO[bytes]]:
    with _folder(folder).open(path, "rb") as f:
        if path.endswith(".jsonl"):
            yield f
            return
        import pyarrow as pa

        with pa.CompressedInputStream(f, "gzip" if path.endswith(".gz") else "zstd") as stream:
            yield io.BufferedReader(stream, 2**20)


@contextlib.contextmanager
def _reading(folder: str, path: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as e:
        raise InputError(f"{folder}/{path} cannot be read to its end ({_brief(e)}): download it again") from e


@functools.lru_cache
def _folder(folder: str):
    from datatrove.io import get_datafolder

    return get_datafolder(folder)


def _patterns(data_files: Any) -> list[str]:
    """The patterns of a card's data_files: one, several, or several splits of which training's is taken."""
    if isinstance(data_files, str):
        return [data_files]
    if all(isinstance(f, str) for f in data_files):
        return list(data_files)
    wanted = [f for f in data_files if f["split"] == "train"] or data_files
    return [pattern for f in wanted for pattern in _patterns(f["path"])]


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell: U+FFFD, as tiktoken has it
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _brief(e: Exception) -> str:
    text = " ".join(str(e).split())
    return f"{type(e).__name__}: {text[:200]}"
