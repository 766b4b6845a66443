"""Parts: the tokens of one unit of a source, on their way into the shards.

The folder where a preparation works holds plan.json, the tokenizer's file and parts/NNNNNN.npz;
whoever sees that folder can tokenize any unit of it.
"""

import functools
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np

from t6jax.data.remote import with_retries
from t6jax.data.shards import DTYPES, version_for
from t6jax.data.sources import Plan, read_unit
from t6jax.data.tokenizers import Tokenizer, kept_tokenizer
from t6jax.files import atomic_file

PLAN = "plan.json"
TOKENIZER_NAME = "tokenizer_name"
PARTS = "parts"


class Part(NamedTuple):
    """tokens [n]; document_tokens, document_bytes [documents]: of each document, its start counted
    as a token.
    """

    tokens: np.ndarray
    document_tokens: np.ndarray
    document_bytes: np.ndarray


def part_path(work: pathlib.Path, index: int) -> pathlib.Path:
    return work / PARTS / f"{index:06d}.npz"


def error_path(work: pathlib.Path, index: int) -> pathlib.Path:
    """Where a task says why it could not make a part."""
    return part_path(work, index).with_suffix(".error")


def tokenize_unit(work: pathlib.Path, index: int) -> None:
    """Writes the part of the index-th unit, unless it is there already."""
    path = part_path(work, index)
    if path.exists():
        return
    plan, tokenizer = _plan(work), _tokenizer(work)
    part = with_retries(lambda: _tokenize(plan, index, tokenizer))
    with atomic_file(path) as file:
        np.savez(file, **part._asdict())


def read_part(path: pathlib.Path) -> Part | None:
    """The part, or None where the file is not whole (a machine that lost power may leave such a
    one).
    """
    try:
        with np.load(path) as arrays:  # a zip file, whose checksums are held against it
            return Part(**arrays)
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError, TypeError):
        return None


def _tokenize(plan: Plan, index: int, tokenizer: Tokenizer) -> Part:
    dtype = DTYPES[version_for(tokenizer.vocab_size)]
    start = np.array([tokenizer.document_start], dtype)
    pieces, document_tokens, document_bytes = [np.zeros(0, dtype)], [], []
    for text in read_unit(plan, plan.units[index]):
        tokens = tokenizer.encode(text).astype(dtype)
        pieces += [start, tokens]
        document_tokens.append(1 + len(tokens))
        document_bytes.append(len(text))
    return Part(
        np.concatenate(pieces),
        np.array(document_tokens, np.int64),
        np.array(document_bytes, np.int64),
    )


@functools.lru_cache(1)  # a worker tokenizes many units
def _plan(work: pathlib.Path) -> Plan:
    return Plan.from_json((work / PLAN).read_text())


@functools.lru_cache(1)
def _tokenizer(work: pathlib.Path) -> Tokenizer:
    return kept_tokenizer(work, (work / TOKENIZER_NAME).read_text())
