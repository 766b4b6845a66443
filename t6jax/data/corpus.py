"""The data of a run: the folders of shards that its config names."""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from t6jax.config import DataConfig
from t6jax.data.manifest import (
    check_data,
    check_kept_tokenizer,
    document_start,
    read_manifest,
    validation_bytes_per_token,
)
from t6jax.data.prepare import prepare
from t6jax.data.records import TEXT_KEY
from t6jax.data.remote import shown
from t6jax.data.tokenizers import (
    GPT2,
    JSON_FILE,
    TIKTOKEN_FILE,
    Tokenizer,
    get_tokenizer,
    kept_tokenizer,
)
from t6jax.errors import InputError
from t6jax.files import read_regular, write_atomically, writing


class Corpus(NamedTuple):
    """The data of a run.

    Attributes:
        sources: folders of shards with their weights.
        document_start: the token that begins each document.
        bytes_per_token: of the validation text; None if a folder has no manifest.
    """

    sources: list[tuple[pathlib.Path, float]]
    document_start: int
    bytes_per_token: float | None

    def __str__(self) -> str:
        if len(self.sources) == 1:
            return str(self.sources[0][0])
        total = sum(weight for _, weight in self.sources)
        return " + ".join(f"{weight / total:.0%} {folder}" for folder, weight in self.sources)


class _Entry(NamedTuple):
    """A folder of shards, and the text that it is prepared from if it does not exist."""

    folder: pathlib.Path
    source: str
    text_key: str
    weight: float


def prepare_missing(workdir: pathlib.Path, data: DataConfig, say: Callable[[str], None]) -> None:
    """Prepares each folder of the config's data that does not exist from its source.

    Args:
        workdir: the run's directory.
        data: the config.
        say: is called with lines of progress.

    Raises:
        InputError: if a folder neither exists nor has a source, or was prepared from another.
    """
    for entry in _entries(workdir, data):
        if entry.folder.is_dir():
            _refuse_other_data(entry, data)
            continue
        if not entry.source:
            raise InputError(
                f"there is no data in {entry.folder}: put token shards there (the .bin files of "
                "llm.c, modded-nanogpt or the published T6 code), make them with python -m "
                "t6jax.data.prepare, or give --config.data.path=FOLDER, or --config.data.path= "
                "--config.data.source=TEXTS"
            )
        say(f"preparing {shown(entry.source)!r} in {entry.folder}")
        with writing(entry.folder.parent):
            entry.folder.parent.mkdir(parents=True, exist_ok=True)
        prepare(
            entry.source,
            entry.folder,
            data.tokenizer,
            data.validation_fraction,
            text_key=entry.text_key,
            workers=len(os.sched_getaffinity(0)),
            say=say,
        )


def _refuse_other_data(entry: _Entry, data: DataConfig) -> None:
    settings = (read_manifest(entry.folder) or {}).get("settings") if entry.source else None
    if not settings:
        return
    wanted = {
        "source": shown(entry.source),
        "text_key": entry.text_key,
        "validation_fraction": data.validation_fraction,
    }
    for key, value in wanted.items():
        made = settings.get(key, TEXT_KEY)  # the one key that may be missing
        if made != value:
            raise InputError(
                f"{entry.folder} was prepared with data.{key}={made!r}, now {value!r}: delete it, "
                "or give another --workdir"
            )


def load_corpus(workdir: pathlib.Path, data: DataConfig, vocab_size: int) -> Corpus:
    """Finds and checks the data of a run.

    Args:
        workdir: the run's directory.
        data: the config.
        vocab_size: of the model.

    Raises:
        InputError: if data is missing or damaged, or does not fit the config.
    """
    entries = _entries(workdir, data)
    for entry in entries:
        if not entry.folder.is_dir():
            raise InputError(
                f"there is no data in {entry.folder}: give --data=FOLDER of token shards, or a "
                "text file or folder"
            )
    tokenizer = kept_path(workdir, data.tokenizer)
    manifests = [check_data(entry.folder, tokenizer, vocab_size) for entry in entries]
    return Corpus(
        [(entry.folder, entry.weight) for entry in entries],
        document_start(manifests[0], tokenizer),
        _bytes_per_token(manifests, [entry.weight for entry in entries]),
    )


def keep_tokenizer(
    workdir: pathlib.Path, corpus: Corpus, name: str, say: Callable[[str], None]
) -> None:
    """Copies the tokenizer to a run's directory, so that the run can be decoded without its data.

    Args:
        workdir: the run's directory.
        corpus: its data.
        name: data.tokenizer of the config.
        say: is called with a sentence if GPT-2's ranks cannot be fetched.
    """
    if any((workdir / file).exists() for file in (TIKTOKEN_FILE, JSON_FILE)):
        return
    folder = corpus.sources[0][0]
    for file in (TIKTOKEN_FILE, JSON_FILE):
        if (folder / file).exists():
            check_kept_tokenizer(folder, read_manifest(folder) or {})
            write_atomically(workdir / file, read_regular(folder / file))
            return
    try:
        get_tokenizer(name).save(workdir)
    except InputError as e:
        if name != GPT2:
            raise
        say(f"the run does not keep its tokenizer, which is needed to decode: {e}")


def run_tokenizer(workdir: pathlib.Path, data: DataConfig) -> Tokenizer:
    """The tokenizer of a run: the one it keeps, or that of its config."""
    return kept_tokenizer(workdir, data.tokenizer)


def kept_path(workdir: pathlib.Path, name: str) -> str:
    """A tokenizer's name; for a file, the path of the run's copy if it has one."""
    kept = workdir / (TIKTOKEN_FILE if name.endswith(".tiktoken") else JSON_FILE)
    return str(kept) if name.endswith((".tiktoken", ".json")) and kept.exists() else name


def _entries(workdir: pathlib.Path, data: DataConfig) -> list[_Entry]:
    """data.path and data.source, or those of data.mixture.

    Without a path, the folder is in the run's directory.
    """
    if not data.mixture:
        folder = pathlib.Path(data.path).expanduser() if data.path else workdir / "data"
        return [_Entry(folder, data.source, data.text_key, 1.0)]
    return [
        _Entry(
            pathlib.Path(entry.path).expanduser() if entry.path else workdir / "data" / name,
            entry.source,
            entry.text_key,
            entry.weight,
        )
        for name, entry in data.mixture.items()
    ]


def _bytes_per_token(manifests: list[dict[str, Any] | None], weights: list[float]) -> float | None:
    total = 0.0
    for manifest, weight in zip(manifests, weights, strict=True):
        own = validation_bytes_per_token(manifest)
        if own is None:
            return None
        total += weight * own
    return total / sum(weights)
