"""Text as it is generated: the pieces joined are the whole, wherever they are cut."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from t6jax.data.tokenizers import ByteTokenizer, JsonTokenizer, TiktokenTokenizer
from t6jax.generation import Detokenizer
from t6jax.generation.api import continuation
from t6jax.generation.detokenizer import CONTEXT

START = "<|endoftext|>"
TEXT = "the quick brown fox — ein großes Tier, 狐 🦊👩‍🚒  over it, isn't it? the end"


def trained(tokenizer: Tokenizer, trainer, folder) -> JsonTokenizer:
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return saved(tokenizer, folder)


def saved(tokenizer: Tokenizer, folder) -> JsonTokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    return JsonTokenizer(folder / "tokenizer.json", "test")


def unigram(folder) -> JsonTokenizer:
    """As SentencePiece's: a space begins a word, and none comes before the first."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=[START, "<unk>"], unk_token="<unk>", show_progress=False
    )
    return trained(tokenizer, trainer, folder)


def word_piece(folder) -> JsonTokenizer:
    """As BERT's: ## goes on with a word."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=[START, "[UNK]"], show_progress=False
    )
    return trained(tokenizer, trainer, folder)


def byte_level(folder) -> JsonTokenizer:
    """As GPT-2's: tokens are bytes, and end inside characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=[START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return trained(tokenizer, trainer, folder)


def nested_byte_level(folder) -> JsonTokenizer:
    """The same within a sequence of decoders, whose text the library makes."""
    byte_level(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel()])
    return saved(tokenizer, folder)


def byte_fallback(folder) -> JsonTokenizer:
    """As Llama 2's: characters that the vocabulary lacks are tokens <0x00> to <0xFF>."""
    pieces = [START, "<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁t", "he", "▁the"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return saved(tokenizer, folder)


def suffixed(folder) -> JsonTokenizer:
    """As the first GPT's: a word ends in a token with </w>."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=[START], end_of_word_suffix="</w>", show_progress=False
    )
    return trained(tokenizer, trainer, folder)


def tiktoken(folder) -> TiktokenTokenizer:
    ranks = {bytes([b]): b for b in range(256)}
    return TiktokenTokenizer("test", ranks | {b"th": 256, b"the": 257, b" the": 258})


KINDS = (
    unigram,
    word_piece,
    byte_level,
    nested_byte_level,
    byte_fallback,
    suffixed,
    tiktoken,
    lambda folder: ByteTokenizer(),
)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def tokenizer(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("tokenizer"))


def whole(tokenizer, ids) -> str:
    return tokenizer.decode(ids).decode("utf-8", "replace")


def pieces(detokenizer, *chunks) -> str:
    return "".join(detokenizer.push(chunk) for chunk in chunks) + detokenizer.finish()


def test_a_text_cut_at_any_token_is_the_text(tokenizer):
    ids = tokenizer.encode(TEXT.encode()).tolist()
    text = whole(tokenizer, ids)
    assert "quick" in text
    assert pieces(Detokenizer(tokenizer), *([i] for i in ids)) == text
    for cut in range(len(ids) + 1):
        assert pieces(Detokenizer(tokenizer), ids[:cut], ids[cut:]) == text, cut
        # and after the first part as a prompt, of which nothing is told again
        assert whole(tokenizer, ids[:cut]).rstrip("\ufffd") + continuation(
            tokenizer, ids[:cut], ids[cut:]
        ) == (text), cut


def test_spaces_between_words_and_characters_across_tokens_are_kept(tokenizer):
    """Where the tokenizer itself keeps the text: all but those that drop what they do not know."""
    ids = tokenizer.encode(b"the quick brown").tolist()
    assert whole(tokenizer, ids) == "the quick brown"
    detokenizer = Detokenizer(tokenizer)
    assert pieces(detokenizer, *([i] for i in ids)) == "the quick brown"


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_ids_in_any_pieces_are_what_they_are_together(tokenizer, data):
    some = st.integers(0, tokenizer.vocab_size - 1)
    context = data.draw(st.lists(some, max_size=3 * CONTEXT), label="context")
    chunks = data.draw(st.lists(st.lists(some, max_size=5), max_size=30), label="chunks")
    ids = [i for chunk in chunks for i in chunk]
    assert pieces(Detokenizer(tokenizer), *chunks) == whole(tokenizer, ids)
    got = pieces(Detokenizer(tokenizer, context), *chunks)
    before, after = whole(tokenizer, context), whole(tokenizer, context + ids)
    # a context's last, incomplete character belongs to what follows
    kept = before[:-1] if before.endswith("\ufffd") else before
    assert kept + got == after


def test_what_is_printed_holds_no_half_of_a_character():
    tokenizer, detokenizer = ByteTokenizer(), Detokenizer(ByteTokenizer())
    printed = [detokenizer.push([byte]) for byte in "a🦊é".encode()]
    assert printed == ["a", "", "", "", "🦊", "", "é"]
    assert detokenizer.finish() == ""
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([0xE2]), detokenizer.push([0x82]), detokenizer.finish()] == [
        "",
        "",
        "\ufffd",
    ]


def test_invalid_bytes_beside_a_character_leave_it_whole(tmp_path):
    tokenizer = byte_fallback(tmp_path)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    ids = [vocabulary[f"<0x{b:02X}>"] for b in "€".encode() + b"\xff"]
    assert whole(tokenizer, ids) == "€\ufffd"


def test_the_work_is_linear_in_the_tokens():
    class Counting(ByteTokenizer):
        decoded = 0

        def decode(self, ids):
            self.decoded += len(ids)
            return super().decode(ids)

    for ids in (np.full(300, ord("a")), np.full(300, 0xE2), np.full(300, 256)):
        tokenizer = Counting()
        pieces(Detokenizer(tokenizer), *([int(i)] for i in ids))
        assert tokenizer.decoded < 4 * CONTEXT * 300
