"""Tokenizers: text in, token ids out, and back. Every document of a shard begins with
`document_start`.
"""

import base64
import hashlib
import pathlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from t6jax.errors import InputError
from t6jax.files import write_atomically

# the names under which a folder of shards, or a run, keeps its tokenizer's file
TIKTOKEN_FILE, JSON_FILE = "tokenizer.tiktoken", "tokenizer.json"
ENDOFTEXT = "<|endoftext|>"
# what starts (or, in the data of many models, ends) a document in the vocabularies of others'
# tokenizer.json
DOCUMENT_STARTS = (
    ENDOFTEXT,
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "[BOS]",
    "[EOS]",
)


class Tokenizer(Protocol):
    """name: what messages call it. hash: SHA-256, in hexadecimal, of what defines it."""

    name: str
    vocab_size: int
    document_start: int
    hash: str

    def encode(self, text: bytes) -> np.ndarray:
        """Token ids of a UTF-8 text, integers [n], without document_start."""
        ...

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for; document_start and ids outside the vocabulary stand for
        none.
        """
        ...

    def save(self, folder: pathlib.Path) -> None:
        """Writes the file that `kept_tokenizer` makes it from again, if it needs one."""
        ...


class ByteTokenizer:
    """One token a byte, 0 to 255, and one that starts a document."""

    name = "bytes"
    vocab_size = 257
    document_start = 256
    hash = hashlib.sha256(b"bytes").hexdigest()

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8)

    def decode(self, ids: Iterable[int]) -> bytes:
        return bytes(i for i in ids if 0 <= i < 256)

    def save(self, folder: pathlib.Path) -> None:
        pass


class TiktokenTokenizer:
    """Byte-pair encoding with GPT-2's pattern, by tiktoken, from the ranks of the byte
    sequences.
    """

    def __init__(self, name: str, ranks: dict[bytes, int]):
        import tiktoken
        from tiktoken_ext.openai_public import (
            r50k_pat_str,
        )  # GPT-2's pattern, written so that it runs faster

        self._ranks = ranks
        self.document_start = len(ranks)
        self.vocab_size = len(ranks) + 1
        self.hash = hashlib.sha256(self._file()).hexdigest()
        self.name = GPT2 if self.hash == GPT2_HASH else name
        special = {ENDOFTEXT: self.document_start}
        self._encoding = tiktoken.Encoding(
            self.name, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special
        )

    def encode(self, text: bytes) -> np.ndarray:
        # a fifth faster than encode_ordinary's list of Python's integers; nothing in the text is
        # taken for a special token
        return self._encoding.encode_to_numpy(
            text.decode("utf-8", "replace"), disallowed_special=()
        )

    def decode(self, ids: Iterable[int]) -> bytes:
        return self._encoding.decode_bytes([i for i in ids if 0 <= i < self.document_start])

    def save(self, folder: pathlib.Path) -> None:
        write_atomically(folder / TIKTOKEN_FILE, self._file())

    def _file(self) -> bytes:
        by_rank = sorted(self._ranks.items(), key=lambda item: item[1])
        return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in by_rank)


class JsonTokenizer:
    """A tokenizer.json of the tokenizers library."""

    def __init__(self, path: pathlib.Path, name: str):
        from tokenizers import Tokenizer, decoders, pre_tokenizers

        self.name = name
        self._data = path.read_bytes()
        self.hash = hashlib.sha256(self._data).hexdigest()
        try:
            self._tokenizer = Tokenizer.from_buffer(self._data)
        except Exception as e:  # the library raises nothing narrower
            raise InputError(
                f"{path} is no tokenizer.json that the tokenizers library reads ({e})"
            ) from e
        self._tokenizer.encode_special_tokens = (
            True  # "<|endoftext|>" in a text is text, and starts no document
        )
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        starts = [vocabulary[t] for t in DOCUMENT_STARTS if t in vocabulary]
        if not starts:
            raise InputError(
                f"{path} has no token to start a document with: it needs one of "
                f"{', '.join(DOCUMENT_STARTS)}"
            )
        self.document_start = starts[0]
        # byte-level tokens are spelled in an alphabet that stands for bytes; decoding by it keeps
        # parts of characters
        self._bytes = None
        if isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            alphabet = _byte_alphabet()
            assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
            added = {
                i: t.content.encode() for i, t in self._tokenizer.get_added_tokens_decoder().items()
            }
            spell = lambda token: (
                bytes(alphabet[c] for c in token)
                if all(c in alphabet for c in token)
                else token.encode()
            )
            self._bytes = {i: spell(token) for token, i in vocabulary.items()} | added

    def encode(self, text: bytes) -> np.ndarray:
        # a sixth faster than encode, since offsets into the text are not kept
        (encoded,) = self._tokenizer.encode_batch_fast(
            [text.decode("utf-8", "replace")], add_special_tokens=False
        )
        return np.asarray(encoded.ids, np.uint32)

    def decode(self, ids: Iterable[int]) -> bytes:
        known = [i for i in ids if 0 <= i < self.vocab_size and i != self.document_start]
        if self._bytes is not None:
            return b"".join(self._bytes.get(i, b"") for i in known)
        return self._tokenizer.decode(known, skip_special_tokens=False).encode()

    def save(self, folder: pathlib.Path) -> None:
        write_atomically(folder / JSON_FILE, self._data)


GPT2 = "gpt2"
GPT2_HASH = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
GPT2_DOCUMENT_START = 50256
NAMES = (ByteTokenizer.name, GPT2)


def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer "bytes" or "gpt2", or that of a .tiktoken rank file or a tokenizer.json, by its
    path.

    Raises InputError for another name, and where GPT-2's ranks cannot be fetched from their usual
    place.
    """
    if name == ByteTokenizer.name:
        return ByteTokenizer()
    if name == GPT2:
        return TiktokenTokenizer(GPT2, _fetch_gpt2())
    check_name(name)
    path = pathlib.Path(name)
    return (
        TiktokenTokenizer(path.stem, _read_ranks(path))
        if path.suffix == ".tiktoken"
        else JsonTokenizer(path, path.name)
    )


def check_name(name: str) -> None:
    """Raises InputError unless the name is a tokenizer's, or the path of a file that may be one."""
    if name in NAMES:
        return
    path = pathlib.Path(name)
    if path.suffix not in (".tiktoken", ".json"):
        raise InputError(
            f"data.tokenizer must be one of {', '.join(NAMES)}, or the path of a .tiktoken file or "
            f"a tokenizer.json; got {name!r}"
        )
    if not path.is_file():
        raise InputError(f"data.tokenizer={name!r}: there is no such file")


def kept_tokenizer(folder: pathlib.Path, name: str) -> Tokenizer:
    """The tokenizer of a folder of shards or of a run: from the file kept there, else by its
    name.
    """
    if (folder / TIKTOKEN_FILE).is_file():
        return TiktokenTokenizer(pathlib.Path(name).stem, _read_ranks(folder / TIKTOKEN_FILE))
    if (folder / JSON_FILE).is_file():
        return JsonTokenizer(folder / JSON_FILE, pathlib.Path(name).name)
    return get_tokenizer(name)


def _fetch_gpt2() -> dict[bytes, int]:
    from tiktoken_ext import openai_public

    try:
        return openai_public.gpt2()["mergeable_ranks"]
    except OSError as e:  # what every failure of its download is, connection or time-out
        raise InputError(
            "tiktoken could not fetch GPT-2's ranks: connect once, set TIKTOKEN_CACHE_DIR, or give "
            "the path of a .tiktoken "
            f"rank file as the tokenizer ({type(e).__name__})"
        ) from e


def _read_ranks(path: pathlib.Path) -> dict[bytes, int]:
    try:
        lines = [line.split() for line in path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except ValueError as e:
        raise InputError(
            f"{path} is no .tiktoken file: its lines are a base64 token and its rank ({e})"
        ) from e
    if sorted(ranks.values()) != list(range(len(ranks))) or any(
        bytes([b]) not in ranks for b in range(256)
    ):
        raise InputError(
            f"{path} is incomplete: ranks must run from 0 without a gap and hold every single byte"
        )
    if (
        len(ranks) > 100_000
    ):  # cl100k_base, o200k_base: ranks for other patterns, which the file does not hold
        raise InputError(
            f"{path} has {len(ranks)} ranks, made for another pattern than GPT-2's: use its "
            "tokenizer.json"
        )
    return ranks


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character -> the byte it stands for: bytes that print as themselves, the
    others from U+0100 on.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
