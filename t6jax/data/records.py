"""Documents in Parquet and JSONL files, on disk or wherever fsspec reaches (the Hugging Face hub: hf://datasets/NAME).

Files are listed and opened by datatrove's DataFolder. Its readers are not used: they hand a task whole files, of which
FineWeb-Edu's sample of 10 billion tokens has 14, and pass over what is damaged with a line in the log.
"""

import contextlib
import functools
import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from t6jax.errors import InputError

COLUMN = "text"
HUB = "hf://datasets/"
ROWS = 1000  # read at once
HUB_BLOCK = 2**24  # bytes of a Parquet file asked for at once: the hub counts requests, 10 a second without a token
ATTEMPTS = 5  # waiting 1, 4, 16 and 64 seconds between them
FIRST_ATTEMPTS = 3  # where nothing is lost yet, and the mistake may be the user's
PRIVATE = "check the name, and set HF_TOKEN to a token that may read it"


class UnavailableError(InputError):
    """A source over a network has failed, and may answer at another time. wait: seconds that it asks to be left alone."""

    wait = 0


def tried[T](call: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """call(), as often as it takes, but at most `attempts` times, while it raises UnavailableError."""
    for attempt in range(attempts - 1):
        try:
            return call()
        except UnavailableError as e:
            wait = max(4**attempt, e.wait)
            print(f"trying again in {wait} s: {e}", file=sys.stderr, flush=True)
            time.sleep(wait)
    return call()


def list_files(folder: str, patterns: list[str]) -> list[tuple[str, int]]:
    """(name, size) of all files of a folder that match one of the patterns, sorted by name."""
    with _reading(folder):
        opened = _folder(folder)
        found = [opened.glob(pattern, detail=True) for pattern in patterns]
    files = {name: info["size"] for infos in found for name, info in infos.items() if info["type"] == "file"}
    return sorted(files.items())


def list_hub(name: str, subset: str) -> tuple[str, list[tuple[str, int]]]:
    """(URL, files) of a data set on the Hugging Face hub at its present commit: all, or those of its configuration `subset`."""
    from huggingface_hub import HfApi

    with _reading(f"data.source={name!r} is no local folder, and {HUB}{name}"):
        info = HfApi().dataset_info(name, timeout=30)
    card = info.card_data.to_dict() if info.card_data else {}
    configurations = {c["config_name"]: c for c in card.get("configs") or []}
    if subset and subset not in configurations:
        raise InputError(f"{name} has no subset {subset!r}; it has {', '.join(configurations) or 'none'}")
    url = f"{HUB}{name}@{info.sha}"
    return url, list_files(url, _patterns(configurations.get(subset or "default", {})))


def pinned(url: str) -> str:
    """A URL of a data set on the Hugging Face hub with the commit that its revision is now; others as they are."""
    if not url.startswith(HUB):
        return url
    from huggingface_hub import HfApi, HfFileSystem

    with _reading(url):
        found = HfFileSystem().resolve_path(url)
        sha = HfApi().dataset_info(found.repo_id, revision=found.revision, timeout=30).sha
    return f"{HUB}{found.repo_id}@{sha}/{found.path_in_repo}".rstrip("/")


def parquet_ranges(folder: str, path: str, size: int, unit_bytes: int) -> list[tuple[int, int, int]]:
    """(first row group, end, bytes of text) of the stretches of a Parquet file with about unit_bytes of text."""
    metadata = _metadata(folder, path)
    column = _text_column(metadata)
    if column is None:
        raise InputError(f"{folder}/{path} has no column {COLUMN!r}")
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
    import pyarrow.parquet as pq

    metadata, options = (_metadata_of_last if _remote(folder) else _metadata)(folder, path), {}
    if folder.startswith(HUB):  # the file ends, for what is read ahead, where the stretch does
        last = metadata.row_group(stop - 1).column(_text_column(metadata))
        begin = last.dictionary_page_offset or last.data_page_offset
        options = {"block_size": HUB_BLOCK, "size": begin + last.total_compressed_size}
    with (
        _reading(folder, path),
        _folder(folder).open(path, "rb", **options) as f,
        pq.ParquetFile(f, metadata=metadata, pre_buffer=False) as file,  # in order: what is read ahead is used
    ):
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


def _metadata(folder: str, path: str) -> Any:
    import pyarrow.parquet as pq

    with _reading(folder, path), _folder(folder).open(path, "rb") as f:
        return pq.read_metadata(f)


_metadata_of_last = functools.lru_cache(1)(_metadata)  # of a file of 2 GB it is megabytes, and its units come one by one


def _text_column(metadata: Any) -> int | None:
    return next((i for i in range(metadata.num_columns) if metadata.schema.column(i).path == COLUMN), None)


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
def _reading(folder: str, path: str = "") -> Iterator[None]:
    """Errors of reading become InputErrors that name the file and what to do."""
    import pyarrow as pa

    name = f"{folder}/{path}" if path else folder
    try:
        yield
    except InputError:
        raise
    except Exception as e:
        if _remote(folder) and not isinstance(e, MemoryError):  # each file system has errors of its own
            raise _remote_error(name, e) from e
        if isinstance(e, (pa.ArrowException, OSError, EOFError)):
            raise InputError(f"{name} cannot be read to its end ({_brief(e)}): download it again") from e
        raise


def _remote(folder: str) -> bool:
    return "://" in folder


def _remote_error(name: str, e: Exception) -> InputError:
    from huggingface_hub import errors

    for kind, what in (
        (errors.GatedRepoError, "is gated: ask for access on its page, and set HF_TOKEN to a token of yours"),
        (errors.RepositoryNotFoundError, f"is not on the Hugging Face hub, or is private: {PRIVATE}"),
        (
            errors.RevisionNotFoundError,
            "is not on the hub at that revision (any more): check it, and delete what a preparation that began with it left",
        ),
        (errors.OfflineModeIsEnabled, "cannot be asked for: unset HF_HUB_OFFLINE, or give a folder of downloaded files"),
        ((FileNotFoundError, errors.EntryNotFoundError), "does not exist: check the name"),
        (PermissionError, "may not be read: check the credentials"),
        (ImportError, f"cannot be read: {_brief(e)}"),
    ):
        if isinstance(e, kind) or isinstance(e.__cause__, kind):
            return InputError(f"{name} {what}")
    response = e.response if isinstance(e, errors.HfHubHTTPError) else None
    if response is not None and response.status_code in (401, 403):
        message = response.headers.get("X-Error-Message", "no reason given").rstrip(".")
        return InputError(f"{name} is refused by the Hugging Face hub ({message}): {PRIVATE}")
    what = f"{name} cannot be read ({_brief(e)})"
    error = UnavailableError(f"{what}: check the connection and give the same command again, or a folder of downloaded files")
    error.wait = _asked_to_wait(response.headers) if response is not None else 0
    return error


def _asked_to_wait(headers: Any) -> int:
    from huggingface_hub.utils import parse_ratelimit_headers

    limit, after = parse_ratelimit_headers(headers), headers.get("Retry-After", "")
    if limit and not limit.remaining:
        return limit.reset_in_seconds + 1
    return int(after) + 1 if after.isdecimal() else 0


@functools.lru_cache
def _folder(folder: str):
    from datatrove.io import get_datafolder

    return get_datafolder(folder)


def _patterns(configuration: dict[str, Any]) -> list[str]:
    """The patterns of a card's configuration; all files where it names none."""
    folder = configuration.get("data_dir", "").strip("/")
    patterns = _data_files(configuration.get("data_files", "**"))
    return [f"{folder}/{pattern}" if folder else pattern for pattern in patterns]


def _data_files(data_files: Any) -> list[str]:
    """The patterns of data_files: one, several, or several splits of which training's is taken."""
    if isinstance(data_files, str):
        return [data_files]
    if all(isinstance(f, str) for f in data_files):
        return list(data_files)
    wanted = [f for f in data_files if f["split"] == "train"] or data_files
    return [pattern for f in wanted for pattern in _data_files(f["path"])]


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell: U+FFFD, as tiktoken has it
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _brief(e: Exception) -> str:
    text = " ".join(str(e).split()).partition(" For more information check:")[0]
    return f"{type(e).__name__}: {text[:200]}"
