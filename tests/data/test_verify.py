"""Whatever is wrong with prepared data is named in one sentence, by verify or before training
starts.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from t6jax import InputError
from t6jax.config import DataConfig
from t6jax.data.corpus import keep_tokenizer, load_corpus
from t6jax.data.manifest import MANIFEST, check_data, read_manifest
from t6jax.data.prepare import prepare
from t6jax.data.shards import write_shard
from t6jax.data.train_tokenizer import train_tokenizer
from t6jax.data.verify import main, verify
from tests.conftest import ROOT, process_options


@pytest.fixture
def folder(texts, tmp_path):
    prepare(str(texts), tmp_path / "out", "bytes", 0.25, shard_tokens=5000)
    return tmp_path / "out"


def change(path, edit):
    data = bytearray(path.read_bytes())
    path.write_bytes(edit(data) or data)


def flip(data):
    data[-3] ^= 1


def test_what_was_prepared_is_right(folder):
    assert [*verify(folder)] == []
    check_data(folder, "bytes", 257)


def test_any_flipped_bit_is_found(folder):
    path = folder / "train_000002.bin"
    whole = path.read_bytes()
    for at in (0, 5, 9, 700, 1024, len(whole) - 1):
        change(path, lambda data, at=at: data.__setitem__(at, data[at] ^ 16))
        (sentence,) = verify(folder, 2)
        assert sentence.startswith(f"{path} "), sentence
        path.write_bytes(whole)
    assert [*verify(folder)] == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: change(f / "train_000001.bin", lambda d: d[:-4]),
            "train_000001.bin is truncated: 11020 bytes",
        ),
        (
            lambda f: change(f / "train_000001.bin", lambda d: b"\1" + d[1:]),
            "train_000001.bin is no token shard",
        ),
        (lambda f: (f / "train_000002.bin").unlink(), "train_000002.bin is missing"),
        (
            lambda f: write_shard(f / "train_000099.bin", np.arange(9)),
            "train_000099.bin is not in the manifest",
        ),
        (
            lambda f: write_shard(f / "train_000001.bin", np.arange(9)),
            "train_000001.bin holds 9 tokens, but the manifest says 5000",
        ),
    ],
)
def test_damage_is_named_before_training_and_by_verify(folder, damage, message):
    damage(folder)
    (sentence,) = verify(folder)
    assert message in sentence
    with pytest.raises(InputError, match=message.split(":")[0]):
        check_data(folder, "bytes", 257)


def test_a_manifest_of_another_tokenizer_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="was tokenized by 'bytes', but data.tokenizer is 'gpt2'"):
        check_data(folder, "gpt2", 50304)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["checksum"]
    (folder / MANIFEST).write_text(json.dumps(manifest | {"tokenizer_hash": "0" * 64}))
    with pytest.raises(
        InputError, match="was tokenized by 'bytes' .000000000000., but data.tokenizer is 'bytes' ."
    ):
        check_data(folder, "bytes", 257)


def test_downloads_without_a_manifest_are_checked_by_their_headers(folder):
    (folder / MANIFEST).unlink()
    assert [*verify(folder)] == []
    assert check_data(folder, "gpt2", 50304) is None
    change(folder / "train_000001.bin", lambda d: d[:-4])
    assert len([*verify(folder)]) == 1


def test_there_must_be_something_to_verify(tmp_path):
    for folder, message in (
        (tmp_path, "holds no shard"),
        (tmp_path / "nowhere", "there is no such folder"),
    ):
        with pytest.raises(InputError, match=message):
            next(verify(folder))


@pytest.mark.slow
def test_the_command(folder):
    run = lambda: subprocess.run(
        [sys.executable, "-m", "t6jax.data.verify", str(folder)],
        **process_options(),
        capture_output=True,
        check=False,
    )
    done = run()
    assert done.returncode == 0 and "shards: every byte is as prepared" in done.stdout
    change(folder / "train_000001.bin", flip)
    done = run()
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"error: {folder}/train_000001.bin is damaged: its bytes do not have the manifest's "
        "SHA-256; prepare or download it again"
    )


def swap(one, other):
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: change(f / "train_000001.crc32", flip), "is damaged"),
        (lambda f: change(f / "train_000001.crc32", lambda d: d + b"1234"), "is damaged"),
        (lambda f: (f / "train_000001.crc32").unlink(), "is missing"),
        (lambda f: swap(f / "train_000001.crc32", f / "train_000002.crc32"), "is damaged"),
    ],
)
def test_damaged_checksums_are_named_and_written_again(folder, damage, says):
    before = (folder / "train_000001.crc32").read_bytes()
    damage(folder)
    sentence, *others = verify(folder)
    assert f"train_000001.crc32 {says}" in sentence and "train_000001.bin is whole" in sentence
    assert all("train_000002.crc32" in other for other in others)
    with pytest.raises(
        InputError, match=f"train_000001.crc32 {says}.* t6jax.data.verify .* --repair writes it"
    ):
        check_data(folder, "bytes", 257)
    assert [*verify(folder, repair=True)] == [] == [*verify(folder)]
    check_data(folder, "bytes", 257)
    assert (folder / "train_000001.crc32").read_bytes() == before


def test_a_damaged_shard_is_not_repaired(folder):
    change(folder / "train_000001.bin", flip)
    (folder / "train_000001.crc32").unlink()
    (sentence,) = verify(folder, repair=True)
    assert "train_000001.bin is damaged: its bytes do not have the manifest's SHA-256" in sentence
    assert not (folder / "train_000001.crc32").exists()


def test_checksums_without_a_manifest_are_held_too(folder):
    (folder / MANIFEST).unlink()
    (folder / "train_000002.crc32").unlink()
    change(folder / "train_000001.bin", flip)
    (sentence,) = verify(folder)
    assert "train_000001.bin or train_000001.crc32 is damaged: they do not match" in sentence


@pytest.fixture
def with_tokenizer(tmp_path):
    train_tokenizer(str(ROOT / "configs"), tmp_path / "mine.json", 300)
    prepare(str(ROOT / "configs"), tmp_path / "out", str(tmp_path / "mine.json"), 0.25)
    return tmp_path / "out", str(tmp_path / "mine.json")


def test_a_damaged_or_lost_tokenizer_is_named_and_not_copied(with_tokenizer, tmp_path):
    folder, tokenizer = with_tokenizer
    assert [*verify(folder)] == []
    data = DataConfig(path=str(folder), tokenizer=tokenizer)
    corpus = load_corpus(tmp_path, data, 300)
    change(folder / "tokenizer.json", lambda d: d.replace(b'"id": 0', b'"id": 1'))
    (sentence,) = verify(folder)
    message = r"tokenizer.json is damaged, or is not 'mine.json', which the shards were made by"
    assert re.search(message, sentence)
    with pytest.raises(InputError, match=message):
        keep_tokenizer(tmp_path, corpus, tokenizer, print)
    (folder / "tokenizer.json").unlink()
    (sentence,) = verify(folder)
    assert "out has lost its tokenizer" in sentence
    keep_tokenizer(tmp_path, corpus, tokenizer, print)  # from the config's own file


def edited(folder, edit):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["checksum"]  # as older ones are
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.pop("vocab_size"), "vocab_size must be a number; got None"),
        (lambda m: m.update(vocab_size="257"), "vocab_size must be a number; got '257'"),
        (lambda m: m.update(tokenizer=3), "tokenizer must be a string; got 3"),
        (lambda m: m.update(train=[]), "train must be an object"),
        (lambda m: m.pop("val"), "val must be an object; got None"),
        (lambda m: m["val"].pop("bytes"), "val.bytes must be a number; got None"),
        (lambda m: m["val"].update(tokens=-1), "val.tokens must be a number; got -1"),
        (lambda m: m["train"].update(shards={}), "train.shards must be a list"),
        (lambda m: m["train"].update(shards=["a"]), r"train.shards\[0\] must be an object"),
        *(
            (
                lambda m, name=name: m["train"]["shards"][1].update(file=name),
                r"train.shards\[1\].file must be the name of a .bin file",
            )
            for name in ("../secret.bin", "/etc/passwd", "a/b.bin", "..", ".bin", ".x.bin", 3, "x")
        ),
    ],
)
def test_a_manifest_that_is_none_is_named(folder, edit, message):
    edited(folder, edit)
    for check in (
        lambda: [*verify(folder)],
        lambda: check_data(folder, "bytes", 257),
        lambda: read_manifest(folder),
    ):
        with pytest.raises(InputError, match=f"manifest.json: {message}"):
            check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "manifest.json must hold a JSON object, not list"),
        (b"\xff", "manifest.json is not valid JSON"),
        (b"[" * 100_000, "manifest.json is not valid JSON"),
        (b"", "manifest.json is not valid JSON"),
    ],
)
def test_what_is_no_manifest_is_named(folder, content, message):
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_manifest(folder)


def test_any_other_digit_of_a_manifest_is_noticed(folder):
    data = (folder / MANIFEST).read_bytes()
    for at, byte in enumerate(data):
        if byte in b"12345678":
            (folder / MANIFEST).write_bytes(data[:at] + bytes([byte + 1]) + data[at + 1 :])
            with pytest.raises(InputError, match="damaged, its checksum does not match"):
                read_manifest(folder)


def test_a_manifest_without_checksums_of_bytes_says_so(folder, capsys):
    edited(folder, lambda m: [shard.pop("sha256") for shard in m["train"]["shards"]])
    assert main([str(folder)]) == 0
    assert "the manifest has no SHA-256 of the bytes" in capsys.readouterr().out


def test_a_fifo_that_a_manifest_names_is_not_waited_for(folder):
    (folder / "train_000001.bin").unlink()
    os.mkfifo(folder / "train_000001.bin")
    (sentence,) = verify(folder)
    assert "train_000001.bin is no regular file" in sentence
    with pytest.raises(InputError, match="train_000001.bin is no regular file"):
        check_data(folder, "bytes", 257)
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    with pytest.raises(InputError, match="manifest.json is no regular file"):
        [*verify(folder)]


def test_verify_reads_at_least_one_file_at_once(folder):
    with pytest.raises(InputError, match="--workers must be at least 1; got 0"):
        main([str(folder), "--workers=0"])
