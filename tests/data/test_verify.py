"""Whatever is wrong with prepared data is named in one sentence, by verify or before training
starts.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from t6jax import InputError
from t6jax.data.manifest import MANIFEST, check_data
from t6jax.data.prepare import prepare
from t6jax.data.shards import write_shard
from t6jax.data.verify import verify
from tests.conftest import process_options


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
