"""eval.py --data and --bpb read the texts that training would read, whatever form they come in."""

import json
import types

import numpy as np
import pytest

from t6jax import InputError
from t6jax.config import DataConfig
from t6jax.programs import evaluation
from t6jax.runs import require_path
from tests.data import corpora

BYTES = DataConfig(path="", tokenizer="bytes")
TEXTS = corpora.documents(20)


@pytest.fixture(params=["a.jsonl", "a.ndjson.gz", "a.parquet", "a.txt", "body.jsonl"])
def source(request, tmp_path):
    """(a source, its texts, the key that they are under)."""
    path, key = tmp_path / "source" / request.param, "text"
    path.parent.mkdir()
    if path.suffix == ".parquet":
        corpora.write_parquet(path, TEXTS)
    elif path.suffix == ".txt":
        path.write_text(TEXTS[0])
        return str(path), TEXTS[:1], key
    elif path.name == "body.jsonl":
        key = "body"
        path.write_text("".join(json.dumps({key: text}) + "\n" for text in TEXTS))
    else:
        corpora.write_jsonl(path, corpora.with_empty_ones(TEXTS))
    return str(path.parent), TEXTS, key


def test_other_data_are_the_texts(source, tmp_path):
    path, texts, key = source
    config = DataConfig(path="", tokenizer="bytes", text_key=key)
    folder, bytes_per_token = evaluation._other_data(tmp_path, config, path, tmp_path, 257)
    tokens = corpora.byte_tokens(texts)
    assert np.fromfile(folder / "val_000000.bin", "<u2")[512:].tolist() == tokens
    assert bytes_per_token == sum(len(text.encode()) for text in texts) / len(tokens)


def test_bits_per_byte_are_of_the_texts(source, monkeypatch, tmp_path, capsys):
    path, texts, key = source
    seen = []

    def nats(scorer, windows, count):
        seen.extend(windows)
        return count

    config = types.SimpleNamespace(context_length=10_000)
    for name, value in (
        ("load", lambda ckpt: (None, config)),
        ("locate", lambda ckpt: (tmp_path, [1])),
        ("read_data_config", lambda workdir: BYTES),
        ("Scorer", lambda model: None),
        ("sliding_windows", lambda tokens, *options: [tokens]),
        ("total_nats", nats),
    ):
        monkeypatch.setattr(evaluation, name, value)
    evaluation.bpb_program("run", path, None, None if key == "text" else key)
    assert [bytes(tokens).decode() for tokens in seen] == texts
    size = sum(len(text.encode()) for text in texts)
    assert f"{len(texts)} texts, {size:,} bytes, {size:,} tokens" in capsys.readouterr().out


def test_an_empty_flag_is_not_the_current_folder():
    with pytest.raises(InputError, match="--data= is empty: name a file or folder"):
        require_path("--data", "")
    require_path("--data", None)
