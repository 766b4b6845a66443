"""Trains a byte-level BPE on a text of the user's.

usage: python -m t6jax.data.train_tokenizer --source=SOURCE --out=FOLDER/tokenizer.json
    --vocab_size=32768 [--text_key=KEY] [--max_bytes=N]
"""

import errno
import os
import pathlib
import re
import signal
from collections.abc import Iterator

from t6jax.command_line import Parser, path_argument, run
from t6jax.data.records import TEXT_KEY
from t6jax.data.sources import Plan, make_plan, read_unit
from t6jax.data.tokenizers import ENDOFTEXT
from t6jax.errors import InputError
from t6jax.extras import needs
from t6jax.files import write_atomically, writing

MIN_VOCAB_SIZE = 257  # every byte, and the start of a document
# Characters. The trainer's time grows with the square of a word's length, and a run of spaces or of
# base64 teaches it nothing more when it is longer.
LONGEST_WORD = 1000
_LONG_WORDS = re.compile(rf"\S{{{LONGEST_WORD},}}|\s{{{LONGEST_WORD},}}")


def train_tokenizer(
    source: str,
    out: pathlib.Path,
    vocab_size: int,
    *,
    subset: str = "",
    text_key: str = TEXT_KEY,
    max_bytes: int | None = None,
) -> int:
    """Trains a byte-level BPE with GPT-2's pattern.

    Memory holds the counts of the text's words, not the text. Words and white space of more than
    LONGEST_WORD characters count as several.

    Args:
        source, subset, text_key: as `make_plan` takes them.
        out: the tokenizer.json to write.
        vocab_size: tokens, including one for each byte and the start of a document.
        max_bytes: about how much text to train on, taken evenly from the source; None: all.

    Returns:
        The vocabulary size, which a small text may leave below vocab_size.

    Raises:
        InputError: if the source cannot be read, or `out` exists or cannot be written.
    """
    with needs("data"):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < MIN_VOCAB_SIZE:
        raise InputError(
            f"--vocab_size must be at least {MIN_VOCAB_SIZE}, for each byte and the start of a "
            f"document; got {vocab_size}"
        )
    if max_bytes is not None and max_bytes < 1:
        raise InputError(f"--max_bytes must be at least 1; got {max_bytes}")
    if out.suffix != ".json":
        raise InputError(f"--out must be a .json file; got {str(out)!r}")
    if out.exists():
        raise InputError(f"{out} exists: give another --out, or move it away")
    plan = make_plan(
        source, subset, validation_fraction=0.01, validation_bytes=0, text_key=text_key
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[ENDOFTEXT],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    with writing(out):  # before minutes of work
        out.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(out.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    tokenizer.train_from_iterator(_pieces(plan, max_bytes), trainer)
    write_atomically(out, tokenizer.to_str(pretty=True))
    return tokenizer.get_vocab_size()


def _pieces(plan: Plan, max_bytes: int | None) -> Iterator[str]:
    """The texts, cut where a word is long."""
    for text in _texts(plan, max_bytes):
        at = 0
        for word in _LONG_WORDS.finditer(text):
            for stop in range(word.start() + LONGEST_WORD, word.end(), LONGEST_WORD):
                yield text[at:stop]
                at = stop
        yield text[at:]


def _texts(plan: Plan, max_bytes: int | None) -> Iterator[str]:
    total = sum(unit.size for unit in plan.units)
    share = 1.0 if max_bytes is None else max_bytes / total
    for unit in plan.units:
        left = share * unit.size
        for text in read_unit(plan, unit):
            if share < 1 and left <= 0:
                break
            left -= len(text)
            yield text.decode("utf-8", "replace")


def main(arguments: list[str]) -> None:
    parser = Parser("t6jax.data.train_tokenizer", __doc__)
    add = parser.add_argument
    add("--source", required=True, help="as for t6jax.data.prepare")
    add("--subset", default="", help="as for t6jax.data.prepare")
    add("--text_key", default=TEXT_KEY, help="as for t6jax.data.prepare")
    add("--out", required=True, type=path_argument, help="the tokenizer.json to write")
    add(
        "--vocab_size",
        required=True,
        type=int,
        help="tokens, including one for each byte and the start of a document",
    )
    add(
        "--max_bytes",
        type=int,
        help="how much text to train on, taken evenly from the source; all if not given",
    )
    args = parser.parse_args(arguments)
    # the library does not return for Ctrl-C; nothing is written before the end
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    size = train_tokenizer(**vars(args))
    print(f"{size:,} tokens in {args.out}")


if __name__ == "__main__":
    run(main)
