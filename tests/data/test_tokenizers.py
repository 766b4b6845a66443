"""Tokenizers: GPT-2's tokens are tiktoken's own, bytes come back, files are kept and named when
they are wrong.
"""

import base64
import pathlib
import random
import re

import numpy as np
import pytest
import tiktoken
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from t6jax import InputError
from t6jax.data import tokenizers
from t6jax.data.documents import documents
from t6jax.data.tokenizers import (
    ByteTokenizer,
    JsonTokenizer,
    TiktokenTokenizer,
    get_tokenizer,
    kept_tokenizer,
)
from t6jax.data.train_tokenizer import train_tokenizer
from tests.conftest import ROOT

RANKS = ROOT.parent / "shared" / "gpt2.tiktoken"
# as OpenAI published it with GPT-2
PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
HARD = (
    "naïve 日本語 🙂 don't I'LL  two\n\n\n three \t\u00a0\u3000x\r\n<|endoftext|> 1234567 ²½ "
    "___ \0\ufeff e\u0301"
)


@pytest.fixture(scope="module")
def gpt2():
    if not RANKS.exists():
        pytest.skip("GPT-2's ranks are not in ../shared/gpt2.tiktoken")
    return get_tokenizer(str(RANKS))


@pytest.fixture(scope="module")
def reference(gpt2):
    ranks = {
        base64.b64decode(t): int(r)
        for t, r in (line.split() for line in RANKS.read_bytes().splitlines())
    }
    return tiktoken.Encoding(
        "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )


def test_gpt2_gives_tiktokens_tokens_on_megabytes_of_real_text(gpt2, reference):
    found = documents("python")
    size = 0
    for document in random.Random(0).sample(found, len(found)):
        text = document.read()
        assert np.array_equal(
            gpt2.encode(text), reference.encode_ordinary(text.decode("utf-8", "replace"))
        ), document.name
        size += len(text)
        if size > 3e6:
            break
    assert size > 3e6


def test_gpt2_gives_tiktokens_tokens_on_hard_text(gpt2, reference):
    draw = random.Random(0)
    letters = [*HARD, "'s", "'re", "\n \n", "  ", "\u2028", "\U0001d518", "ไทย", "ב"]
    for text in [
        HARD,
        "",
        " ",
        "\n",
        *("".join(draw.choices(letters, k=draw.randint(1, 60))) for _ in range(2000)),
    ]:
        ids = gpt2.encode(text.encode())
        assert ids.tolist() == reference.encode_ordinary(text), repr(text)
        assert gpt2.decode(ids) == text.encode()
    for text in (" " * 200_000, "a" * 200_000, "\n" * 200_000, "日本語" * 50_000):
        assert gpt2.decode(gpt2.encode(text.encode())) == text.encode()


def test_gpt2_encodes_long_white_space_apart_with_the_same_tokens(gpt2, reference, monkeypatch):
    text = "page" + " " * 1_200_000 + "footer"
    ids = gpt2.encode(text.encode())
    assert gpt2.decode(ids) == text.encode() and len(ids) < 1_200_003
    pattern = tokenizers._LONG_RUNS.pattern.replace(str(tokenizers.LONG_RUN), "3")
    monkeypatch.setattr(tokenizers, "LONG_RUN", 3)
    monkeypatch.setattr(tokenizers, "_LONG_RUNS", re.compile(pattern))
    draw, apart = random.Random(0), 0
    parts = [*" \n\t\u3000\xa0\x1c\x85", "    ", "\n\n\n", "\r\n", "a", "don't", "1", "!", "é"]
    for _ in range(2000):
        text = "".join(draw.choices(parts, k=draw.randint(1, 20)))
        apart += tokenizers._LONG_RUNS.search(text) is not None
        assert gpt2.encode(text.encode()).tolist() == reference.encode_ordinary(text), repr(text)
    assert apart > 500


def test_gpt2_is_known_by_its_ranks_and_starts_documents_with_endoftext(gpt2, tmp_path):
    assert (gpt2.name, gpt2.vocab_size, gpt2.document_start) == ("gpt2", 50257, 50256)
    assert gpt2.encode(b"<|endoftext|>").max() < 50256, "text never makes a document start"
    assert gpt2.decode([50256, *gpt2.encode(b"a b"), 50300]) == b"a b"
    gpt2.save(tmp_path)
    assert (tmp_path / "tokenizer.tiktoken").read_bytes() == RANKS.read_bytes()
    assert kept_tokenizer(tmp_path, "gpt2").hash == gpt2.hash
    assert gpt2.decode(gpt2.encode(b"\xff\xfe")) == "��".encode()


def test_bytes_round_trip_and_unknown_ids_stand_for_nothing(tmp_path):
    tokenizer = ByteTokenizer()
    text = "naïve 日本\0\n".encode() + b"\xff"
    assert tokenizer.decode([256, *tokenizer.encode(text), 300]) == text
    tokenizer.save(tmp_path)
    assert not [*tmp_path.iterdir()] and kept_tokenizer(tmp_path, "bytes").hash == tokenizer.hash


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("tokenizer") / "sub" / "tokenizer.json"
    assert train_tokenizer(str(ROOT / "t6jax"), path, 600) == 600
    return path


def test_a_trained_tokenizer_shortens_text_and_gives_its_bytes_back(trained, tmp_path):
    tokenizer = get_tokenizer(str(trained))
    assert isinstance(tokenizer, JsonTokenizer) and tokenizer.vocab_size == 600
    source = pathlib.Path(__file__).read_bytes()
    for text in (source, HARD.encode()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert b"".join(tokenizer.decode([i]) for i in ids) == text, (
            "token by token, inside characters too"
        )
    assert len(tokenizer.encode(source)) < 0.6 * len(source)
    assert tokenizer.decode([tokenizer.document_start, *tokenizer.encode(b"a")]) == b"a"
    tokenizer.save(tmp_path)
    assert kept_tokenizer(tmp_path, "anything").hash == tokenizer.hash
    again = tmp_path / "again.json"
    train_tokenizer(str(ROOT / "t6jax"), again, 600)
    assert again.read_bytes() == trained.read_bytes()
    train_tokenizer(str(ROOT / "t6jax"), tmp_path / "part.json", 300, max_bytes=5000)


def test_a_rank_file_of_ones_own(tmp_path):
    ranks = [*(bytes([b]) for b in range(256)), b"th", b"the"]
    path = tmp_path / "mine.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(ranks)))
    tokenizer = get_tokenizer(str(path))
    assert (
        isinstance(tokenizer, TiktokenTokenizer)
        and tokenizer.name == "mine"
        and tokenizer.vocab_size == 259
    )
    assert tokenizer.encode(b"the x").tolist() == [257, 32, 120]


TEXT = "the quick brown fox, <s> jumps </s> over <|endoftext|> the lazy dog " * 5


def changed(trained, tmp_path, change) -> JsonTokenizer:
    """The trained tokenizer as another program may have saved it."""
    tokenizer = Tokenizer.from_file(str(trained))
    change(tokenizer)
    tokenizer.save(str(tmp_path / "changed.json"))
    return JsonTokenizer(tmp_path / "changed.json", "changed.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: tokenizer.enable_truncation(16),
        lambda tokenizer: tokenizer.enable_padding(length=512, pad_id=5, pad_token="x"),
        lambda tokenizer: setattr(tokenizer.model, "dropout", 0.5),
    ],
)
def test_truncation_padding_and_dropout_of_a_tokenizer_json_change_nothing(
    trained, tmp_path, change
):
    plain = get_tokenizer(str(trained)).encode(TEXT.encode()).tolist()
    tokenizer = changed(trained, tmp_path, change)
    assert len(plain) > 16
    for _ in range(3):
        assert tokenizer.encode(TEXT.encode()).tolist() == plain


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def bpe_that_merges_a_control_token() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(
        vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(["<s>", "</s>", "<s><s>", *TEXT.split()] * 9, trainer)
    return tokenizer


def words() -> Tokenizer:
    names = ["<unk>", "<s>", "</s>", *sorted({*TEXT.split()} - {"<s>", "</s>", "<|endoftext|>"})]
    tokenizer = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def added_as_no_special_token() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_tokens(
        [AddedToken(name, special=False) for name in ("<s>", "</s>", "<|endoftext|>", "lazy dog")]
    )
    return tokenizer


@pytest.mark.parametrize(
    "make", [unigram, bpe_that_merges_a_control_token, words, added_as_no_special_token]
)
def test_no_text_spells_a_control_token(tmp_path, make):
    made = make()
    made.save(str(tmp_path / "a.json"))
    tokenizer = get_tokenizer(str(tmp_path / "a.json"))
    control = {made.token_to_id(name) for name in ("<s>", "</s>", "<|endoftext|>")} - {None}
    assert control & {*made.encode(TEXT, add_special_tokens=False).ids}, "as the library has it"
    ids = tokenizer.encode(TEXT.encode()).tolist()
    assert tokenizer.document_start in control and not control & {*ids}
    # all else is as the library has it
    plain = "the quick brown fox, jumps over the lazy dog"
    assert tokenizer.encode(plain.encode()).tolist() == made.encode(plain).ids
    if make is not words:  # whose one word for what it does not know has no letters
        letters = tokenizer.decode(ids).decode().replace("<unk>", "").split()
        assert "".join(letters) == "".join(TEXT.split())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "words",
            None,
            "data.tokenizer must be one of bytes, gpt2, or the path of a .tiktoken file or a "
            "tokenizer.json; got 'words'",
        ),
        ("no.tiktoken", None, "no.tiktoken': there is no such file"),
        ("a.tiktoken", b"???? 1\n", "a.tiktoken is no .tiktoken file"),
        ("a.tiktoken", b"IQ== 0\n", "a.tiktoken is incomplete"),
        (
            "a.json",
            Tokenizer(models.BPE()).to_str().encode(),
            "a.json has no token that starts a document: it needs one of",
        ),
        ("a.json", b"{", "a.json is no tokenizer.json that the tokenizers library reads"),
    ],
)
def test_what_is_wrong_with_a_tokenizer_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        get_tokenizer(name if name == "words" else str(path))


def test_gpt2_without_a_network_is_named(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("tiktoken_ext.openai_public.data_gym_to_mergeable_bpe_ranks", fail)
    with pytest.raises(
        InputError,
        match=r"could not fetch GPT-2's ranks .ConnectionError.: connect once, .* or give the path",
    ):
        get_tokenizer("gpt2")


def test_what_train_tokenizer_cannot_do_is_named(trained, tmp_path):
    for arguments, message in (
        (("t6jax", tmp_path / "a.json", 100), "--vocab_size must be at least 257"),
        (("t6jax", tmp_path / "a.bin", 300), "--out must be a .json file"),
        (("t6jax", trained, 300), "exists: give another --out"),
        (("nowhere", tmp_path / "a.json", 300), "there is no such file or folder"),
    ):
        with pytest.raises(InputError, match=message):
            train_tokenizer(*arguments)
