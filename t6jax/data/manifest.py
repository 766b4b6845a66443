"""The manifest of a folder of shards: what made them, what they hold, and their checksums."""

import hashlib
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from t6jax.data.shards import find_shards, shard_header
from t6jax.data.tokenizers import (
    GPT2,
    GPT2_DOCUMENT_START,
    GPT2_HASH,
    JSON_FILE,
    TIKTOKEN_FILE,
    ByteTokenizer,
    get_tokenizer,
)
from t6jax.errors import InputError
from t6jax.files import read_regular
from t6jax.sealed_json import read_sealed

MANIFEST = "manifest.json"
FORMAT = "llm.c token shards (magic 20240520)"


SPLITS = ("train", "val")
# no folder, and nothing hidden: a manifest names files beside it
SHARD_NAME = re.compile(r"[^./\\\0][^/\\\0]*\.bin")
PREPARE = "prepare the data again, or restore the file"


def read_manifest(folder: pathlib.Path) -> dict[str, Any] | None:
    """The manifest of a folder of shards; None if it has none, like downloads of other projects.

    Raises:
        InputError: it is damaged, or not what a manifest is.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    manifest = read_sealed(path, PREPARE, required=False)  # older ones have no checksum
    for place, value, fits, wanted in _required(manifest):
        if not fits(value):
            raise InputError(f"{path}: {place} must be {wanted}; got {value!r:.100}: {PREPARE}")
    return manifest


def _required(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any, Callable, str]]:
    """(place, value, whether it fits, what it must be) of what is read from a manifest."""
    for key in ("vocab_size", "document_start"):
        yield key, manifest.get(key), _is_count, "a number"
    yield "tokenizer", manifest.get("tokenizer"), _is_text, "a string"
    yield "tokenizer_hash", manifest.get("tokenizer_hash", ""), _is_text, "a string"
    yield "settings", manifest.get("settings", {}), _is_object, "an object"
    for split in SPLITS:
        held = manifest.get(split)
        yield split, held, _is_object, "an object"
        assert held is not None
        for key in ("documents", "bytes", "tokens"):
            yield f"{split}.{key}", held.get(key), _is_count, "a number"
        shards = held.get("shards")
        yield f"{split}.shards", shards, lambda value: isinstance(value, list), "a list"
        for i, shard in enumerate(shards):
            place = f"{split}.shards[{i}]"
            yield place, shard, _is_object, "an object"
            yield f"{place}.file", shard.get("file"), _is_name, "the name of a .bin file"
            yield f"{place}.tokens", shard.get("tokens"), _is_count, "a number"
            for key in ("sha256", "crc32"):
                yield f"{place}.{key}", shard.get(key, ""), _is_text, "a string"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and SHARD_NAME.fullmatch(value) is not None


def listed_shards(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a manifest says of each shard, by the name of its file."""
    return {shard["file"]: shard for split in SPLITS for shard in manifest[split]["shards"]}


def validation_bytes_per_token(manifest: Mapping[str, Any] | None) -> float | None:
    """Bytes of text a token of the validation shards; None if they are not known."""
    if manifest is None or not manifest["val"]["bytes"] or not manifest["val"]["tokens"]:
        return None
    return manifest["val"]["bytes"] / manifest["val"]["tokens"]


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
            manifest says, if its checksums are missing or damaged, or if the shards were made by
            another tokenizer or for a larger vocabulary.
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
        for name, shard in listed_shards(manifest).items():
            check_checksums(folder / name, shard)
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
    listed = {name: shard["tokens"] for name, shard in listed_shards(manifest).items()}
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


def check_checksums(path: pathlib.Path, listed: Mapping[str, Any]) -> None:
    """Checks that a prepared shard's .crc32 file is as the manifest says.

    Args:
        path: of the shard.
        listed: what the manifest says of it.

    Raises:
        InputError: naming the .crc32 file.
    """
    sums = path.with_suffix(".crc32")
    if not sums.exists():
        if "sha256" not in listed:  # shards that were not made here
            return
        what = "is missing, and without it nothing would notice damage"
    elif "crc32" in listed and listed["crc32"] != file_crc32(read_regular(sums)):
        what = f"is damaged: it is not what was written for {path.name}"
    else:
        return
    raise InputError(
        f"{sums} {what}; python -m t6jax.data.verify {path.parent} --repair writes it again if the "
        "shard is whole"
    )


def check_kept_tokenizer(folder: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Checks that the tokenizer's file in a prepared folder is the one that the manifest names.

    Raises:
        InputError: the file is damaged, another tokenizer's, or gone.
    """
    if "tokenizer_hash" not in manifest or manifest["tokenizer"] == ByteTokenizer.name:
        return
    names = (TIKTOKEN_FILE, JSON_FILE)
    found = [folder / name for name in names if (folder / name).exists()]
    made_by = f"{manifest['tokenizer']!r}, which the shards were made by"
    if not found:
        raise InputError(
            f"{folder} has lost its tokenizer, {' or '.join(names)}: copy {made_by}, there"
        )
    for path in found:
        if hashlib.sha256(read_regular(path)).hexdigest() != manifest["tokenizer_hash"]:
            raise InputError(f"{path} is damaged, or is not {made_by}: copy that one there again")


def file_crc32(data: bytes) -> str:
    """The CRC-32 of a .crc32 file, as a manifest has it."""
    return f"{zlib.crc32(data):08x}"


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
