"""The manifest of a folder of shards: what made them, what they hold, and their checksums."""

import json
import pathlib
from typing import Any

from t6jax.data.shards import find_shards, shard_header
from t6jax.data.tokenizers import GPT2, GPT2_DOCUMENT_START, GPT2_HASH, ByteTokenizer, get_tokenizer
from t6jax.errors import InputError

MANIFEST = "manifest.json"
FORMAT = "llm.c token shards (magic 20240520)"


def read_manifest(folder: pathlib.Path) -> dict[str, Any] | None:
    """The manifest of a folder of shards; None if it has none, like downloads of other projects."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as e:
        raise InputError(f"{path} is not valid JSON ({e}); prepare the data again") from e


def check_data(folder: pathlib.Path, tokenizer: str, vocab_size: int) -> dict[str, Any] | None:
    """Checks a folder of shards against its manifest and the config.

    Args:
        folder: the shards.
        tokenizer: data.tokenizer of the config.
        vocab_size: model.vocab_size of the config.

    Returns:
        The manifest, or None if the folder has none.

    Raises:
        InputError: if the folder holds no shards, if a shard's size is not what its header or the
            manifest says, or if the shards were made by another tokenizer or for a larger
            vocabulary.
    """
    counts = {
        p.name: shard_header(p)[1] for split in ("train", "val") for p in find_shards(folder, split)
    }
    manifest = read_manifest(folder)
    if manifest:
        _check_tokenizer(folder, manifest, tokenizer)
        if manifest["vocab_size"] > vocab_size:
            raise InputError(
                f"{folder} has a vocabulary of {manifest['vocab_size']}, larger than "
                f"model.vocab_size={vocab_size}"
            )
        check_counts(folder, manifest, counts)
    return manifest


def check_counts(folder: pathlib.Path, manifest: dict[str, Any], counts: dict[str, int]) -> None:
    """Checks that a folder's shards are those of the manifest, with as many tokens.

    Args:
        folder: the shards.
        manifest: the folder's.
        counts: tokens of each shard that was found, by the name of its file.

    Raises:
        InputError: naming the first shard that differs.
    """
    listed = {
        s["file"]: s["tokens"] for split in ("train", "val") for s in manifest[split]["shards"]
    }
    for name in sorted(listed.keys() | counts.keys()):
        if name not in counts:
            raise InputError(
                f"{folder / name} is missing: the manifest lists it; prepare or download it again"
            )
        if name not in listed:
            raise InputError(f"{folder / name} is not in the manifest: move it out of the folder")
        if counts[name] != listed[name]:
            raise InputError(
                f"{folder / name} holds {counts[name]} tokens, but the manifest says "
                f"{listed[name]}; prepare it again"
            )


def document_start(manifest: dict[str, Any] | None, tokenizer: str) -> int:
    """The token that every document of the shards starts with."""
    if manifest:
        return manifest["document_start"]
    known = {ByteTokenizer.name: ByteTokenizer.document_start, GPT2: GPT2_DOCUMENT_START}
    return known[tokenizer] if tokenizer in known else get_tokenizer(tokenizer).document_start


def _check_tokenizer(folder: pathlib.Path, manifest: dict[str, Any], tokenizer: str) -> None:
    made_by, wanted = manifest["tokenizer"], tokenizer
    if "tokenizer_hash" in manifest:
        # known without fetching GPT-2's ranks
        known = {ByteTokenizer.name: ByteTokenizer.hash, GPT2: GPT2_HASH}
        found = manifest["tokenizer_hash"]
        expected = known[tokenizer] if tokenizer in known else get_tokenizer(tokenizer).hash
        if found == expected:
            return
        if pathlib.Path(wanted).name == made_by:
            raise InputError(
                f"{folder} was tokenized by {made_by!r} ({found[:12]}), but data.tokenizer is "
                f"{wanted!r} ({expected[:12]})"
            )
    if made_by != wanted:
        raise InputError(f"{folder} was tokenized by {made_by!r}, but data.tokenizer is {wanted!r}")
