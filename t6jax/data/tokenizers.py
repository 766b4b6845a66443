"""Tokenizers, by name: text in, token ids out, and back. Every document of a shard begins with `document_start`."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from t6jax.errors import InputError


class Tokenizer(Protocol):
    name: str
    vocab_size: int
    document_start: int

    def encode(self, text: bytes) -> np.ndarray:
        """Token ids of a UTF-8 text, int64 [n], without document_start."""
        ...

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for; document_start and ids outside the vocabulary stand for none."""
        ...


class ByteTokenizer:
    """One token a byte, 0 to 255, and one that starts a document."""

    name = "bytes"
    vocab_size = 257
    document_start = 256

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8).astype(np.int64)

    def decode(self, ids: Iterable[int]) -> bytes:
        return bytes(i for i in ids if 0 <= i < 256)


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding, by tiktoken, which fetches its ranks once from its usual place."""

    name = "gpt2"
    vocab_size = 50257
    document_start = 50256

    def __init__(self):
        import tiktoken

        try:
            self._encoding = tiktoken.get_encoding("gpt2")
        except OSError as e:  # what every failure of its download is, connection or time-out
            raise InputError(f"tiktoken could not fetch GPT-2's ranks; connect once, or set TIKTOKEN_CACHE_DIR ({e})") from e

    def encode(self, text: bytes) -> np.ndarray:
        return np.asarray(self._encoding.encode_ordinary(text.decode("utf-8", "replace")), np.int64)

    def decode(self, ids: Iterable[int]) -> bytes:
        return self._encoding.decode_bytes([i for i in ids if 0 <= i < self.document_start])


TOKENIZERS: dict[str, type] = {t.name: t for t in (ByteTokenizer, GPT2Tokenizer)}


def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name. Raises InputError for another name."""
    if name not in TOKENIZERS:
        raise InputError(f"data.tokenizer must be one of {', '.join(TOKENIZERS)}; got {name!r}")
    return TOKENIZERS[name]()
