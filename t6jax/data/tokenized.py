"""The tokens of one unit of a source, between the workers that tokenize and the shards.

The folder in which a preparation works holds plan.json, the tokenizer's file and
tokenized/NNNNNN.npz. Any worker that sees the folder can tokenize any unit of the plan.
"""

import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from t6jax.data.remote import shown, with_retries
from t6jax.data.shards import DTYPES, version_for
from t6jax.data.sources import Plan, read_unit
from t6jax.data.tokenizers import Tokenizer, kept_tokenizer
from t6jax.errors import InputError
from t6jax.files import atomic_file, writing
from t6jax.sealed_json import read_sealed

PLAN = "plan.json"
SETTINGS = "settings.json"
TOKENIZED = "tokenized"


class TokenizedUnit(NamedTuple):
    """The tokens of a unit, and how they divide into documents.

    Attributes:
        tokens: [n], each document with its start token first.
        document_tokens: [documents], tokens of each document, the start token included.
        document_bytes: [documents], bytes of text of each document.
    """

    tokens: np.ndarray
    document_tokens: np.ndarray
    document_bytes: np.ndarray


def unit_path(work: pathlib.Path, index: int) -> pathlib.Path:
    """The file with the tokens of the index-th unit."""
    return work / TOKENIZED / f"{index:06d}.npz"


def error_path(work: pathlib.Path, index: int) -> pathlib.Path:
    """The file in which a task says why it could not tokenize the index-th unit."""
    return unit_path(work, index).with_suffix(".error")


def tokenize_unit(work: pathlib.Path, index: int) -> None:
    """Writes the tokens of the index-th unit, unless they are there already."""
    path = unit_path(work, index)
    if path.exists():
        return
    plan, tokenizer = _plan(work, _stamp(work / PLAN)), _tokenizer(work, _stamp(work / SETTINGS))
    unit = with_retries(lambda: _tokenize(plan, index, tokenizer))
    with writing(path), atomic_file(path) as file:
        np.savez(file, **unit._asdict())


def load_unit(path: pathlib.Path) -> TokenizedUnit | None:
    """Reads the tokens of a unit; None if the file is damaged, as a power failure may leave it."""
    try:
        with np.load(path) as arrays:  # a zip file, which is checked against its checksums
            return TokenizedUnit(**arrays)
    except Exception:  # zipfile and NumPy have many for what a file may hold
        return None


def read_plan(work: pathlib.Path) -> Plan:
    """The plan of a preparation. Raises InputError if it is damaged."""
    return Plan.from_dict(read_sealed(work / PLAN, start_again(work)))


def read_settings(work: pathlib.Path) -> dict[str, Any]:
    """The settings of a preparation. Raises InputError if they are damaged."""
    return read_sealed(work / SETTINGS, start_again(work))


def start_again(work: pathlib.Path) -> str:
    """What to do where a file of a preparation is damaged."""
    return f"delete {work} to start again"


def _tokenize(plan: Plan, index: int, tokenizer: Tokenizer) -> TokenizedUnit:
    dtype = DTYPES[version_for(tokenizer.vocab_size)]
    start = np.array([tokenizer.document_start], dtype)
    pieces, document_tokens, document_bytes = [np.zeros(0, dtype)], [], []
    for number, text in enumerate(read_unit(plan, plan.units[index])):
        try:
            tokens = tokenizer.encode(text).astype(dtype)
        except Exception as e:  # of a library that met what it cannot do
            unit = plan.units[index]
            raise InputError(
                f"{shown(plan.folder, unit.path)}: document {number} of those from {unit.start} to "
                f"{unit.stop}, with "
                f"{len(text):,} bytes, which begins with {text[:60].decode('utf-8', 'replace')!r}, "
                f"cannot be tokenized by {tokenizer.name} ({type(e).__name__}: {e}): change it or "
                "leave it out"
            ) from e
        pieces += [start, tokens]
        document_tokens.append(1 + len(tokens))
        document_bytes.append(len(text))
    return TokenizedUnit(
        np.concatenate(pieces),
        np.array(document_tokens, np.int64),
        np.array(document_bytes, np.int64),
    )


@functools.lru_cache(1)  # a worker tokenizes many units
def _plan(work: pathlib.Path, stamp: tuple[int, int]) -> Plan:
    return read_plan(work)


@functools.lru_cache(1)
def _tokenizer(work: pathlib.Path, stamp: tuple[int, int]) -> Tokenizer:
    settings = read_settings(work)
    tokenizer = kept_tokenizer(work, settings["tokenizer"])
    if tokenizer.hash != settings["tokenizer_hash"]:
        raise InputError(
            f"the tokenizer in {work} is not the one that it was begun with: {start_again(work)}"
        )
    return tokenizer


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    """Of the file that is there now: a folder may be deleted, and begun again."""
    try:
        found = path.stat()
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror}): give the command again") from e
    return found.st_ino, found.st_mtime_ns
