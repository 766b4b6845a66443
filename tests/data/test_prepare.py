"""Preparing: every byte of every document is in the shards, the manifest is true, and other data is refused."""

import json

import numpy as np
import pytest

from t6jax import InputError
from t6jax.data.documents import documents, split
from t6jax.data.prepare import MANIFEST, check_data, prepare
from t6jax.data.shards import find_shards, open_shard
from t6jax.data.tokenizers import ByteTokenizer, get_tokenizer


def test_shards_hold_every_document_behind_a_document_start(texts, tmp_path):
    out = tmp_path / "data"
    manifest = prepare(str(texts), out, "bytes", 0.25, shard_tokens=5000)
    training, validation = split(documents(str(texts)), 0.25)
    for name, want in (("train", training), ("val", validation)):
        shards = find_shards(out, name)
        tokens = np.concatenate([open_shard(p) for p in shards])
        assert tokens.tolist() == [t for d in want for t in (256, *d.read())]
        assert manifest[name]["documents"] == len(want)
        assert manifest[name]["bytes"] == sum(d.size for d in want)
        assert manifest[name]["tokens"] == len(tokens)
        assert [s["tokens"] for s in manifest[name]["shards"]] == [len(open_shard(p)) for p in shards]
        assert all(s["tokens"] == 5000 for s in manifest[name]["shards"][:-1])
    assert len(find_shards(out, "train")) > 2
    assert json.loads((out / MANIFEST).read_text()) == manifest
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_data_of_another_tokenizer_or_vocabulary_is_refused(texts, tmp_path):
    out = tmp_path / "data"
    prepare(str(texts), out, "bytes", 0.25)
    check_data(out, "bytes", 257)
    with pytest.raises(InputError, match="was tokenized by 'bytes', but data.tokenizer is 'gpt2'"):
        check_data(out, "gpt2", 50304)
    with pytest.raises(InputError, match="vocabulary of 257, larger than model.vocab_size=200"):
        check_data(out, "bytes", 200)
    (out / MANIFEST).write_text("{")
    with pytest.raises(InputError, match="manifest.json is not valid JSON"):
        check_data(out, "bytes", 257)


def test_bytes_round_trip_and_unknown_ids_stand_for_nothing():
    tokenizer = ByteTokenizer()
    text = "naïve 日本\0\n".encode()
    assert tokenizer.decode([256, *tokenizer.encode(text), 300]) == text
    with pytest.raises(InputError, match="data.tokenizer must be one of bytes, gpt2; got 'words'"):
        get_tokenizer("words")
