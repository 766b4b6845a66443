"""The tokens of one unit of a source, between the workers that tokenize and the shards.

The folder in which a preparation works holds plan.json, the tokenizer's file and
tokenized/NNNNNN.npz. Any worker that sees the folder can tokenize any unit of the plan.
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
    plan, tokenizer = _plan(work), _tokenizer(work)
    unit = with_retries(lambda: _tokenize(plan, index, tokenizer))
    with atomic_file(path) as file:
        np.savez(file, **unit._asdict())


def load_unit(path: pathlib.Path) -> TokenizedUnit | None:
    """Reads the tokens of a unit; None if the file is damaged, as a power failure may leave it."""
    try:
        with np.load(path) as arrays:  # a zip file, which is checked against its checksums
            return TokenizedUnit(**arrays)
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError, TypeError):
        return None


def _tokenize(plan: Plan, index: int, tokenizer: Tokenizer) -> TokenizedUnit:
    dtype = DTYPES[version_for(tokenizer.vocab_size)]
    start = np.array([tokenizer.document_start], dtype)
    pieces, document_tokens, document_bytes = [np.zeros(0, dtype)], [], []
    for text in read_unit(plan, plan.units[index]):
        tokens = tokenizer.encode(text).astype(dtype)
        pieces += [start, tokens]
        document_tokens.append(1 + len(tokens))
        document_bytes.append(len(text))
    return TokenizedUnit(
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
