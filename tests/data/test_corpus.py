"""The data of a run: prepared if it is missing, mixed, masked, and decodable from the run alone."""

import dataclasses
import json
import math
import shutil

import pytest

from t6jax import InputError
from t6jax.config import DataConfig, RunConfig
from t6jax.data.corpus import keep_tokenizer, load_corpus, prepare_missing, run_tokenizer
from t6jax.data.prepare import prepare
from t6jax.data.tokenizers import get_tokenizer
from t6jax.data.train_tokenizer import train_tokenizer
from t6jax.training.loop import train
from tests.conftest import ROOT, tiny_run
from tests.data import corpora

DATA = DataConfig(path="", tokenizer="bytes", validation_fraction=0.2)


def silent(text: str) -> None:
    pass


def with_mixture(mixture: dict) -> DataConfig:
    return DataConfig.from_dict(DATA.to_dict() | {"mixture": mixture})


@pytest.fixture
def tokenizer(tmp_path):
    train_tokenizer(str(ROOT / "t6jax"), tmp_path / "mine.json", 400)
    return tmp_path / "mine.json"


def test_a_source_is_prepared_once(texts, tmp_path):
    data = dataclasses.replace(DATA, source=str(texts))
    said = []
    prepare_missing(tmp_path, data, said.append)
    assert said[0] == f"preparing {str(texts)!r} in {tmp_path / 'data'}"
    prepare_missing(tmp_path, data, said.append)
    assert [text for text in said if text.startswith("preparing")] == said[:1]
    corpus = load_corpus(tmp_path, data, 257)
    assert corpus.sources == [(tmp_path / "data", 1.0)] and corpus.document_start == 256
    assert 0.97 < corpus.bytes_per_token < 1
    assert str(corpus) == str(tmp_path / "data")


def test_a_path_may_begin_at_the_home_folder(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare(str(texts), tmp_path / "shards", "bytes", 0.2)
    data = dataclasses.replace(DATA, path="~/shards")
    prepare_missing(tmp_path / "run", data, silent)
    assert load_corpus(tmp_path / "run", data, 257).sources == [(tmp_path / "shards", 1.0)]
    mixed = with_mixture({"a": {"path": "~/shards"}})
    assert load_corpus(tmp_path / "run", mixed, 257).sources == [(tmp_path / "shards", 1.0)]


def test_a_mixtures_sources_are_prepared_under_their_names(texts, tmp_path):
    prepare(str(ROOT / "configs"), tmp_path / "configs", "bytes", 0.2)
    mixture = {
        "mine": {"source": str(texts), "weight": 3},
        "code": {"path": str(tmp_path / "configs")},
    }
    prepare_missing(tmp_path / "run", with_mixture(mixture), silent)
    corpus = load_corpus(tmp_path / "run", with_mixture(mixture), 257)
    assert corpus.sources == [
        (tmp_path / "run" / "data" / "mine", 3.0),
        (tmp_path / "configs", 1.0),
    ]
    assert str(corpus) == f"75% {tmp_path}/run/data/mine + 25% {tmp_path}/configs"


def test_the_text_of_a_source_may_have_another_key(tmp_path):
    lines = "".join(json.dumps({"body": text}) + "\n" for text in corpora.documents(60))
    (tmp_path / "a.jsonl").write_text(lines)
    source = str(tmp_path / "a.jsonl")
    data = dataclasses.replace(DATA, source=source, text_key="body")
    prepare_missing(tmp_path / "run", data, silent)
    assert load_corpus(tmp_path / "run", data, 257).bytes_per_token > 0.9
    with pytest.raises(InputError, match="prepared with data.text_key='body', now 'text'"):
        prepare_missing(tmp_path / "run", dataclasses.replace(data, text_key="text"), silent)
    mixture = {"mine": {"source": source, "text_key": "body"}}
    prepare_missing(tmp_path / "mixed", with_mixture(mixture), silent)
    assert corpora.all_tokens(tmp_path / "mixed" / "data" / "mine") == corpora.all_tokens(
        tmp_path / "run" / "data"
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"wieght": 1, "path": "x"},
            r"data.mixture.web.wieght is unknown \(did you mean weight\?\); the keys of "
            "data.mixture.web are path, source, text_key, weight",
        ),
        ({"weight": 1.0}, "data.mixture.web needs a path or a source"),
        ({"path": "x", "weight": 0}, "data.mixture.web.weight must be above 0; got 0"),
    ],
)
def test_a_mixture_that_cannot_be_is_named(texts, entry, message):
    config = tiny_run(texts)
    config["data"]["mixture"] = {"web": entry}
    with pytest.raises(InputError, match=message):
        RunConfig.from_dict(config)


def test_missing_data_and_sources_of_two_tokenizers_are_named(texts, tokenizer, tmp_path):
    with pytest.raises(
        InputError,
        match=r"no data in .*/data: put token shards there .* python -m t6jax.data.prepare",
    ):
        prepare_missing(tmp_path, DATA, silent)
    prepare(str(texts), tmp_path / "a", "bytes", 0.2)
    prepare(str(texts), tmp_path / "b", str(tokenizer), 0.2)
    mixture = {name: {"path": str(tmp_path / name)} for name in ("a", "b")}
    with pytest.raises(
        InputError, match=r"b was tokenized by 'mine.json', but data.tokenizer is 'bytes'"
    ):
        load_corpus(tmp_path, with_mixture(mixture), 400)


def test_a_run_keeps_what_decodes_its_tokens(texts, tokenizer, tmp_path):
    data = dataclasses.replace(DATA, source=str(texts), tokenizer=str(tokenizer))
    ids = get_tokenizer(str(tokenizer)).encode("naïve def".encode())
    prepare_missing(tmp_path, data, silent)
    keep_tokenizer(tmp_path, load_corpus(tmp_path, data, 400), data.tokenizer, silent)
    tokenizer.unlink()
    assert run_tokenizer(tmp_path, data).decode(ids) == "naïve def".encode()
    load_corpus(tmp_path, data, 400)  # the run's own copy stands in for the file that is gone
    (tmp_path / "data" / "tokenizer.json").unlink()
    assert (
        run_tokenizer(shutil.copytree(tmp_path, tmp_path.with_name("moved")), data).decode(ids)
        == "naïve def".encode()
    )


@pytest.mark.slow
def test_training_on_a_mixture_with_document_masking(texts, tokenizer, tmp_path):
    """Parquet and text, mixed, masked, with a tokenizer of one's own; the run says how long it
    waited for data.
    """
    corpora.write_parquet(tmp_path / "web" / "0.parquet", corpora.documents(200))
    config = tiny_run(texts)
    config["model"]["vocab_size"] = 400
    mixture = {
        "web": {"source": str(tmp_path / "web"), "weight": 1.0},
        "mine": {"source": str(texts), "weight": 2.0},
    }
    config["data"] |= {
        "source": "",
        "mixture": mixture,
        "tokenizer": str(tokenizer),
        "document_masking": True,
    }
    assert train(RunConfig.from_dict(config), tmp_path / "run") is None
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    trained = [line for line in lines if "train_loss" in line]
    assert len(trained) == 8 and all(0 <= line["data_wait_fraction"] <= 1 for line in trained)
    assert trained[-1]["train_loss"] < trained[0]["train_loss"] < math.log(400) + 0.5
