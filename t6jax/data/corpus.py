"""The data of a run: the folders of shards that its config names, checked, and prepared where that
is asked for.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from t6jax.config import DataConfig
from t6jax.data.manifest import check_data, document_start, read_manifest
from t6jax.data.prepare import prepare
from t6jax.data.tokenizers import (
    GPT2,
    JSON_FILE,
    TIKTOKEN_FILE,
    Tokenizer,
    get_tokenizer,
    kept_tokenizer,
)
from t6jax.errors import InputError
from t6jax.files import write_atomically


class Corpus(NamedTuple):
    """sources: folders of shards with their weights. document_start: the token that begins each
    document.

    bytes_per_token: of the validation text, None where a folder has no manifest.
    """

    sources: list[tuple[pathlib.Path, float]]
    document_start: int
    bytes_per_token: float | None

    def __str__(self) -> str:
        if len(self.sources) == 1:
            return str(self.sources[0][0])
        total = sum(weight for _, weight in self.sources)
        return " + ".join(f"{weight / total:.0%} {folder}" for folder, weight in self.sources)


def prepare_missing(workdir: pathlib.Path, data: DataConfig, say: Callable[[str], None]) -> None:
    """Prepares each folder of the config's data that is not there, from the source that is given
    for it.
    """
    for folder, source, _ in _entries(workdir, data):
        if folder.is_dir():
            _refuse_other_data(folder, source, data)
            continue
        if not source:
            raise InputError(
                f"there is no data in {folder}: put token shards there (the .bin files of llm.c, "
                "modded-nanogpt or the "
                "published T6 code), make them with python -m t6jax.data.prepare, or give "
                "--config.data.path=FOLDER, or "
                "--config.data.path= --config.data.source=TEXTS"
            )
        say(f"preparing {source!r} in {folder}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        prepare(
            source,
            folder,
            data.tokenizer,
            data.validation_fraction,
            workers=len(os.sched_getaffinity(0)),
            say=say,
        )


def _refuse_other_data(folder: pathlib.Path, source: str, data: DataConfig) -> None:
    made = (read_manifest(folder) or {}).get("settings") if source else None
    wanted = {"source": source, "validation_fraction": data.validation_fraction}
    for key in wanted if made else ():
        if made[key] != wanted[key]:
            raise InputError(
                f"{folder} was prepared with data.{key}={made[key]!r}, now {wanted[key]!r}: delete "
                "it, or give another --workdir"
            )


def load_corpus(workdir: pathlib.Path, data: DataConfig, vocab_size: int) -> Corpus:
    """The config's data. Raises InputError where it is missing or damaged, or does not fit the
    config.
    """
    entries = _entries(workdir, data)
    for folder, *_ in entries:
        if not folder.is_dir():
            raise InputError(
                f"there is no data in {folder}: give --data=FOLDER of token shards, or a text file "
                "or folder"
            )
    manifests = [
        check_data(folder, kept_path(workdir, data.tokenizer), vocab_size) for folder, *_ in entries
    ]
    return Corpus(
        [(folder, weight) for folder, _, weight in entries],
        document_start(manifests[0], kept_path(workdir, data.tokenizer)),
        _bytes_per_token(manifests, [weight for *_, weight in entries]),
    )


def keep_tokenizer(
    workdir: pathlib.Path, corpus: Corpus, name: str, say: Callable[[str], None]
) -> None:
    """Copies to a run's directory what is needed to decode its tokens, so that it is whole by
    itself.
    """
    if any((workdir / file).exists() for file in (TIKTOKEN_FILE, JSON_FILE)):
        return
    for file in (TIKTOKEN_FILE, JSON_FILE):
        if (corpus.sources[0][0] / file).exists():
            write_atomically(workdir / file, (corpus.sources[0][0] / file).read_bytes())
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


def _entries(workdir: pathlib.Path, data: DataConfig) -> list[tuple[pathlib.Path, str, float]]:
    """(folder, source, weight): data.path and data.source, or those of data.mixture; without a
    path, a folder in the run's directory.
    """
    if not data.mixture:
        folder = pathlib.Path(data.path) if data.path else workdir / "data"
        return [(folder, data.source, 1.0)]
    return [
        (
            pathlib.Path(entry.path) if entry.path else workdir / "data" / name,
            entry.source,
            entry.weight,
        )
        for name, entry in data.mixture.items()
    ]


def kept_path(workdir: pathlib.Path, name: str) -> str:
    """A tokenizer's name; for a file, the run's own copy where it has one."""
    kept = workdir / (TIKTOKEN_FILE if name.endswith(".tiktoken") else JSON_FILE)
    return str(kept) if name.endswith((".tiktoken", ".json")) and kept.exists() else name


def _bytes_per_token(manifests: list[dict[str, Any] | None], weights: list[float]) -> float | None:
    if not all(manifests):
        return None
    of = lambda manifest: manifest["val"]["bytes"] / manifest["val"]["tokens"]
    return sum(w * of(m) for m, w in zip(manifests, weights, strict=True)) / sum(weights)
