"""Tokenizers: text to token ids, and back.

Every document of a shard begins with the tokenizer's document_start.
"""

import base64
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from t6jax.data.tokenizer_json import for_encoding
from t6jax.errors import InputError
from t6jax.extras import needs
from t6jax.files import read_regular, write_atomically

# the file that a folder of shards, or a run, keeps its tokenizer in
TIKTOKEN_FILE, JSON_FILE = "tokenizer.tiktoken", "tokenizer.json"
ENDOFTEXT = "<|endoftext|>"
# Tokens that start a document (or end it, in the data of many models) in a tokenizer.json. The
# first that the vocabulary has counts.
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
LONG_RUN = 10_000  # characters
# of what Unicode, and Rust's \s, has as white space; Python's \s has four control characters more
_LONG_RUNS = re.compile(
    rf"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{{{LONG_RUN},}}"
)


# The private characters that stand for single bytes, U+10FF00 to U+10FFFF, and how UTF-8 has them
_FIRST_FALLBACK = 0x10FF00
_FALLBACK = re.compile(rb"\xf4\x8f([\xbc-\xbf])([\x80-\xbf])")


class Tokenizer(Protocol):
    """What the data room asks of a tokenizer.

    Attributes:
        name: for messages and manifests.
        vocab_size: all ids are below it.
        document_start: the id that starts a document.
        hash: SHA-256, in hexadecimal, of what defines the tokenizer.
    """

    name: str
    vocab_size: int
    document_start: int
    hash: str

    def encode(self, text: bytes) -> np.ndarray:
        """Token ids of a UTF-8 text, integers [n], without document_start."""
        ...

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids; document_start and ids outside the vocabulary have none."""
        ...

    def save(self, folder: pathlib.Path) -> None:
        """Writes the file from which `kept_tokenizer` makes it again, if it needs one."""
        ...


class ByteTokenizer:
    """One token for each byte, 0 to 255, and one that starts a document."""

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
    """Byte-pair encoding with GPT-2's pattern, by tiktoken, from the ranks of byte sequences."""

    def __init__(self, name: str, ranks: dict[bytes, int]):
        with needs("data"):
            import tiktoken

            # GPT-2's pattern, in a form that runs faster
            from tiktoken_ext.openai_public import r50k_pat_str

        self._tiktoken, self._ranks = tiktoken, ranks
        self.document_start = len(ranks)
        self.vocab_size = len(ranks) + 1
        self.hash = hashlib.sha256(self._file()).hexdigest()
        self.name = GPT2 if self.hash == GPT2_HASH else name
        special = {ENDOFTEXT: self.document_start}
        self._encoding = tiktoken.Encoding(
            self.name, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special
        )

    def encode(self, text: bytes) -> np.ndarray:
        string = text.decode("utf-8", "replace")
        if len(string) < LONG_RUN or not (runs := [*_LONG_RUNS.finditer(string)]):
            return self._encode(string)
        # Such a run, but for its last character if something follows, is one word of the pattern,
        # whose search for its end would run out of memory.
        parts, at = [], 0
        for run in runs:
            stop = run.end() if run.end() == len(string) else run.end() - 1
            parts.append(self._encode(string[at : run.start()]))
            parts.append(self._words.encode_to_numpy(string[run.start() : stop]))
            at = stop
        return np.concatenate([*parts, self._encode(string[at:])])

    def _encode(self, text: str) -> np.ndarray:
        # a fifth faster than encode_ordinary, which makes a list; no text is a special token
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    @functools.cached_property
    def _words(self) -> Any:
        """Encodes a whole text as one word."""
        return self._tiktoken.Encoding(
            f"{self.name} words",
            pat_str=r"[\s\S]+",
            mergeable_ranks=self._ranks,
            special_tokens={},
        )

    def decode(self, ids: Iterable[int]) -> bytes:
        return self._encoding.decode_bytes([i for i in ids if 0 <= i < self.document_start])

    def save(self, folder: pathlib.Path) -> None:
        write_atomically(folder / TIKTOKEN_FILE, self._file())

    def _file(self) -> bytes:
        by_rank = sorted(self._ranks.items(), key=lambda item: item[1])
        return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in by_rank)


class JsonTokenizer:
    """A tokenizer.json of the tokenizers library.

    A text is encoded whole, whatever truncation, padding or dropout the file was saved with, and
    makes no control token: "<|endoftext|>" in a text starts no document.
    """

    def __init__(self, path: pathlib.Path, name: str):
        with needs("data"):
            from tokenizers import Tokenizer, decoders, pre_tokenizers

        self.name = name
        self._data = read_regular(path)
        self.hash = hashlib.sha256(self._data).hexdigest()
        try:
            self._tokenizer = Tokenizer.from_buffer(self._data)
        except Exception as e:  # the library raises no narrower class
            raise InputError(
                f"{path} is no tokenizer.json that the tokenizers library reads ({e})"
            ) from e
        # as the library reads them: later additions to the format, and defaults, included
        given = json.loads(self._tokenizer.to_str())
        wanted = for_encoding(given, DOCUMENT_STARTS)
        self._encoder = self._tokenizer
        if wanted != given:
            self._encoder = Tokenizer.from_str(json.dumps(wanted))
        self._encoder.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        starts = [vocabulary[t] for t in DOCUMENT_STARTS if t in vocabulary]
        if not starts:
            raise InputError(
                f"{path} has no token that starts a document: it needs one of "
                f"{', '.join(DOCUMENT_STARTS)}"
            )
        self.vocab_size = max(vocabulary.values()) + 1
        self.document_start = starts[0]
        # Tokens for single bytes. The library's decoder makes U+FFFD of bytes that spell none,
        # and of the characters beside them; so it is given a character for each byte.
        self._fallback: dict[str, str] = {}
        if b'"ByteFallback"' in self._data:
            names = {f"<0x{b:02X}>": chr(_FIRST_FALLBACK + b) for b in range(256)}
            self._fallback = {name: names[name] for name in names if name in vocabulary}
        # Byte-level tokens are spelled in an alphabet that stands for bytes. Decoding by the
        # alphabet keeps tokens that end inside a character.
        self._bytes = None
        if isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            alphabet = _byte_alphabet()
            assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
            added = {
                i: t.content.encode() for i, t in self._tokenizer.get_added_tokens_decoder().items()
            }
            self._bytes = {i: _spelled(token, alphabet) for token, i in vocabulary.items()} | added

    def encode(self, text: bytes) -> np.ndarray:
        # a sixth faster than encode, which keeps offsets into the text
        (encoded,) = self._encoder.encode_batch_fast(
            [text.decode("utf-8", "replace")], add_special_tokens=False
        )
        return np.asarray(encoded.ids, np.uint32)

    def decode(self, ids: Iterable[int]) -> bytes:
        known = [i for i in ids if 0 <= i < self.vocab_size and i != self.document_start]
        if self._bytes is not None:
            return b"".join(self._bytes.get(i, b"") for i in known)
        if not self._fallback:
            return self._tokenizer.decode(known, skip_special_tokens=False).encode()
        tokens = [self._tokenizer.id_to_token(i) for i in known]
        tokens = [self._fallback.get(token, token) for token in tokens if token is not None]
        text = self._tokenizer.decoder.decode(tokens).encode()
        return _FALLBACK.sub(lambda m: bytes([(m[1][0] & 3) << 6 | m[2][0] & 0x3F]), text)

    def save(self, folder: pathlib.Path) -> None:
        write_atomically(folder / JSON_FILE, self._data)


GPT2 = "gpt2"
GPT2_HASH = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
GPT2_DOCUMENT_START = 50256
NAMES = (ByteTokenizer.name, GPT2)


def get_tokenizer(name: str) -> Tokenizer:
    """Makes a tokenizer.

    Args:
        name: "bytes", "gpt2", or the path of a .tiktoken rank file or a tokenizer.json.

    Raises:
        InputError: for another name or a damaged file, and if tiktoken cannot fetch GPT-2's ranks.
    """
    if name == ByteTokenizer.name:
        return ByteTokenizer()
    if name == GPT2:
        return TiktokenTokenizer(GPT2, _fetch_gpt2())
    check_name(name)
    path = pathlib.Path(name)
    if path.suffix == ".tiktoken":
        return TiktokenTokenizer(path.stem, _read_ranks(path))
    return JsonTokenizer(path, path.name)


def check_name(name: str) -> None:
    """Raises InputError unless the name is a tokenizer's, or the path of such a file."""
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
    """The tokenizer of a folder of shards or of a run: from its file there, else by its name."""
    if (folder / TIKTOKEN_FILE).is_file():
        return TiktokenTokenizer(pathlib.Path(name).stem, _read_ranks(folder / TIKTOKEN_FILE))
    if (folder / JSON_FILE).is_file():
        return JsonTokenizer(folder / JSON_FILE, pathlib.Path(name).name)
    return get_tokenizer(name)


def _spelled(token: str, alphabet: dict[str, int]) -> bytes:
    """The bytes of a byte-level token; one that the alphabet does not spell is plain text."""
    if all(c in alphabet for c in token):
        return bytes(alphabet[c] for c in token)
    return token.encode()


def _fetch_gpt2() -> dict[bytes, int]:
    with needs("data"):
        from tiktoken_ext import openai_public

    try:
        return openai_public.gpt2()["mergeable_ranks"]
    except OSError as e:  # of which every failure of a download is a subclass
        raise InputError(
            f"tiktoken could not fetch GPT-2's ranks ({type(e).__name__}): connect once, set "
            "TIKTOKEN_CACHE_DIR, or give the path of a .tiktoken rank file as the tokenizer"
        ) from e


def _read_ranks(path: pathlib.Path) -> dict[bytes, int]:
    data = read_regular(path)
    try:
        lines = [line.split() for line in data.splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except ValueError as e:
        raise InputError(
            f"{path} is no .tiktoken file, whose lines are a base64 token and its rank ({e})"
        ) from e
    if sorted(ranks.values()) != list(range(len(ranks))) or any(
        bytes([b]) not in ranks for b in range(256)
    ):
        raise InputError(
            f"{path} is incomplete: its ranks must count from 0 without a gap and include every "
            "single byte"
        )
    # cl100k_base and o200k_base have other patterns, which the file does not hold
    if len(ranks) > 100_000:
        raise InputError(
            f"{path} has {len(ranks)} ranks, so it was made for another pattern than GPT-2's: use "
            "its tokenizer.json"
        )
    return ranks


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte -> the byte.

    Bytes that print stand for themselves, the others are characters from U+0100 on.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
