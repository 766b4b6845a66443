"""Files that fsspec reads, on disk or over a network.

Data sets on the Hugging Face hub are read at one commit. datatrove's DataFolder lists and opens the
files. Failures of a network that may pass are retried; others become one sentence that names the
file and what to do.
"""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from t6jax.config.urls import without_secrets
from t6jax.errors import InputError
from t6jax.extras import needs

HUB = "hf://datasets/"
ATTEMPTS = 5  # with waits of 1, 4, 16 and 64 seconds between them
FIRST_ATTEMPTS = 3  # at the start, when the mistake may be the user's
PRIVATE = "check the name, and set HF_TOKEN to a token that may read it"


class UnavailableError(InputError):
    """A source over a network failed, and may work later.

    Attributes:
        wait: seconds after which the source asks to be tried again.
    """

    wait = 0


def with_retries[T](call: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """Returns call(), repeating it while it raises UnavailableError, up to `attempts` times."""
    for attempt in range(attempts - 1):
        try:
            return call()
        except UnavailableError as e:
            wait = max(4**attempt, e.wait)
            print(f"retrying in {wait} s: {e}", file=sys.stderr, flush=True)
            time.sleep(wait)
    return call()


def list_files(folder: str, patterns: list[str]) -> list[tuple[str, int]]:
    """(name, size) of all files in a folder that match one of the patterns, sorted by name."""
    with reading(folder):
        found = [opened(folder).glob(pattern, detail=True) for pattern in patterns]
    files = {
        name: info["size"]
        for infos in found
        for name, info in infos.items()
        if info["type"] == "file"
    }
    return sorted(files.items())


def list_hub(name: str, subset: str) -> tuple[str, list[tuple[str, int]]]:
    """Lists the files of a data set on the Hugging Face hub at its latest commit.

    Args:
        name: OWNER/NAME.
        subset: a configuration of the data set; empty: the default one.

    Returns:
        The URL with the commit, and (name, size) of the files.

    Raises:
        InputError: if there is no such data set or subset, or the hub cannot be read.
    """
    with needs("data"):
        from huggingface_hub import HfApi

    with reading(f"data.source={name!r} is no local folder, and {HUB}{name}"):
        info = HfApi().dataset_info(name, timeout=30)
    card = info.card_data.to_dict() if info.card_data else {}
    configurations = {c["config_name"]: c for c in card.get("configs") or []}
    if subset and subset not in configurations:
        raise InputError(
            f"{name} has no subset {subset!r}; it has {', '.join(configurations) or 'none'}"
        )
    url = f"{HUB}{name}@{info.sha}"
    return url, list_files(url, _patterns(configurations.get(subset or "default", {})))


def pinned(url: str) -> str:
    """The URL of a data set on the Hugging Face hub with its commit; other URLs unchanged."""
    if not url.startswith(HUB):
        return url
    with needs("data"):
        from huggingface_hub import HfApi, HfFileSystem
        from huggingface_hub.hf_file_system import HfFileSystemResolvedRepositoryPath

    with reading(url):
        found = HfFileSystem().resolve_path(url)
        if not isinstance(found, HfFileSystemResolvedRepositoryPath):  # a bucket has no commits
            return url
        sha = HfApi().dataset_info(found.repo_id, revision=found.revision, timeout=30).sha
    return f"{HUB}{found.repo_id}@{sha}/{found.path_in_repo}".rstrip("/")


@contextlib.contextmanager
def reading(folder: str, path: str = "") -> Iterator[None]:
    """Turns errors of reading into InputErrors that name the file and what to do."""
    with needs("data"):
        import pyarrow as pa

    name = shown(folder, path)
    try:
        yield
    except InputError:
        raise
    except Exception as e:
        # each remote file system has its own errors
        if is_remote(folder) and not isinstance(e, MemoryError):
            raise _remote_error(name, e) from e
        if isinstance(e, PermissionError | FileNotFoundError | IsADirectoryError):
            raise InputError(f"{name} cannot be read ({e.strerror}): check it") from e
        if isinstance(e, (pa.ArrowException, OSError, EOFError)):
            raise InputError(
                f"{name} cannot be read to its end ({_brief(e)}): download it again"
            ) from e
        raise


def shown(folder: str, path: str = "") -> str:
    """A file's name for messages: a URL without user info and query."""
    return without_secrets(f"{folder}/{path}" if path else folder)


def is_remote(folder: str) -> bool:
    """Whether a folder is given as a URL."""
    return "://" in folder


def _remote_error(name: str, e: Exception) -> InputError:
    with needs("data"):
        from huggingface_hub import errors

    for kind, what in (
        (
            errors.GatedRepoError,
            "is gated: ask for access on its page, and set HF_TOKEN to a token of yours",
        ),
        (
            errors.RepositoryNotFoundError,
            f"is not on the Hugging Face hub, or is private: {PRIVATE}",
        ),
        (
            errors.RevisionNotFoundError,
            "does not have that revision (any more): check it, and delete the .partial folder of a "
            "preparation that began with it",
        ),
        (
            errors.OfflineModeIsEnabled,
            "cannot be fetched: unset HF_HUB_OFFLINE, or give a folder of downloaded files",
        ),
        ((FileNotFoundError, errors.EntryNotFoundError), "does not exist: check the name"),
        (PermissionError, "is not readable for you: check the credentials"),
        (ImportError, f"cannot be read: {_brief(e)}"),
    ):
        if isinstance(e, kind) or isinstance(e.__cause__, kind):
            return InputError(f"{name} {what}")
    response = e.response if isinstance(e, errors.HfHubHTTPError) else None
    if response is not None and response.status_code in (401, 403):
        message = response.headers.get("X-Error-Message", "no reason given").rstrip(".")
        return InputError(f"{name} is refused by the Hugging Face hub ({message}): {PRIVATE}")
    what = f"{name} cannot be read ({_brief(e)})"
    error = UnavailableError(
        f"{what}: check the connection and give the same command again, or a folder of downloaded "
        "files"
    )
    error.wait = _asked_to_wait(response.headers) if response is not None else 0
    return error


def _asked_to_wait(headers: Any) -> int:
    from huggingface_hub.utils import parse_ratelimit_headers

    limit, after = parse_ratelimit_headers(headers), headers.get("Retry-After", "")
    if limit and not limit.remaining:
        return limit.reset_in_seconds + 1
    return int(after) + 1 if after.isdecimal() else 0


@functools.lru_cache
def opened(folder: str) -> Any:
    """datatrove's DataFolder of a path or URL."""
    with needs("data"):
        from datatrove.io import get_datafolder

    return get_datafolder(folder)


def _patterns(configuration: dict[str, Any]) -> list[str]:
    """The file patterns of a data set card's configuration; all files if it names none."""
    folder = configuration.get("data_dir", "").strip("/")
    patterns = _data_files(configuration.get("data_files", "**"))
    return [f"{folder}/{pattern}" if folder else pattern for pattern in patterns]


def _data_files(data_files: Any) -> list[str]:
    """The patterns of data_files: one, several, or several splits, of which "train" is taken."""
    if isinstance(data_files, str):
        return [data_files]
    if all(isinstance(f, str) for f in data_files):
        return list(data_files)
    wanted = [f for f in data_files if f["split"] == "train"] or data_files
    return [pattern for f in wanted for pattern in _data_files(f["path"])]


def _brief(e: Exception) -> str:
    text = " ".join(str(e).split()).partition(" For more information check:")[0]
    return f"{type(e).__name__}: {without_secrets(text)[:200]}"
