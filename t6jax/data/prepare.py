"""Documents to a folder of token shards with a manifest."""

import json
import os
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np

from t6jax.data.documents import Document, documents, split
from t6jax.data.shards import find_shards, write_shard
from t6jax.data.tokenizers import Tokenizer, get_tokenizer
from t6jax.errors import InputError

MANIFEST = "manifest.json"
SHARD_TOKENS = 10**8


def prepare(
    source: str,
    out: pathlib.Path,
    tokenizer_name: str,
    validation_fraction: float,
    shard_tokens: int = SHARD_TOKENS,
) -> dict:
    """Tokenizes a source (see `documents`) into shards in `out`; returns the manifest.

    Everything is written in a folder beside `out` and renamed at the end: `out` is there whole, or not at all.
    """
    tokenizer = get_tokenizer(tokenizer_name)
    training, validation = split(documents(source), validation_fraction)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    manifest = {
        "format": "llm.c token shards (magic 20240520)",
        "source": source,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "document_start": tokenizer.document_start,
        "val": _write_split(validation, tokenizer, partial, "val", 0, shard_tokens),
    }
    manifest["train"] = _write_split(training, tokenizer, partial, "train", len(manifest["val"]["shards"]), shard_tokens)
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    partial.rename(out)
    return manifest


def read_manifest(folder: pathlib.Path) -> dict | None:
    """The manifest of a folder of shards; None where it has none, as downloads of other projects."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as e:
        raise InputError(f"{path} is not valid JSON ({e}); prepare the data again") from e


def check_data(folder: pathlib.Path, tokenizer: str, vocab_size: int) -> dict | None:
    """Holds a folder of shards against the config; returns its manifest, if it has one.

    Raises InputError where there are no shards, or they were made by another tokenizer or for a larger vocabulary.
    """
    for name in ("train", "val"):
        find_shards(folder, name)
    manifest = read_manifest(folder)
    if manifest:
        if manifest["tokenizer"] != tokenizer:
            raise InputError(f"{folder} was tokenized by {manifest['tokenizer']!r}, but data.tokenizer is {tokenizer!r}")
        if manifest["vocab_size"] > vocab_size:
            raise InputError(f"{folder} has a vocabulary of {manifest['vocab_size']}, larger than model.vocab_size={vocab_size}")
    return manifest


def _write_split(
    found: Sequence[Document], tokenizer: Tokenizer, folder: pathlib.Path, name: str, first: int, shard_tokens: int
) -> dict:
    shards, pending, pending_tokens, total_bytes = [], [], 0, 0

    def flush(tokens: np.ndarray) -> None:
        path = folder / f"{name}_{first + len(shards):06d}.bin"
        write_shard(path, tokens)
        shards.append({"file": path.name, "tokens": len(tokens)})

    for document in found:
        text = document.read()
        total_bytes += len(text)
        pending.append(np.concatenate([[tokenizer.document_start], tokenizer.encode(text)]))
        pending_tokens += len(pending[-1])
        while pending_tokens >= shard_tokens:
            tokens = np.concatenate(pending)
            flush(tokens[:shard_tokens])
            pending, pending_tokens = [tokens[shard_tokens:]], len(tokens) - shard_tokens
    if pending_tokens:
        flush(np.concatenate(pending))
    tokens = sum(s["tokens"] for s in shards)
    return {"documents": len(found), "bytes": total_bytes, "tokens": tokens, "shards": shards}
