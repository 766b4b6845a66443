"""Every byte of a folder is covered by its checksums, theirs included."""

import json
import time

import numpy as np
import pytest

from t6jax import checksums
from t6jax.checksums import NAME, ChecksumError, Checksums, Hasher

FILES = {"a/large": 5000, "a/end": 4096, "b": 3, "empty": 0}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of files of several blocks, one and none."""
    monkeypatch.setattr(checksums, "BLOCK", 2048)
    monkeypatch.setattr(checksums, "_PIECE", 1024)
    draw = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    for name, size in FILES.items():
        (tmp_path / name).write_bytes(draw.bytes(size))
    Hasher(tmp_path).finish(tmp_path, {"step": 3}).write(tmp_path)
    return tmp_path


def check(folder, **options) -> None:
    sums = Checksums.read(folder)
    assert sums is not None
    sums.verify(folder, **options)


def test_what_was_written_is_accepted(folder):
    sums = Checksums.read(folder)
    assert sums.about == {"step": 3}
    assert {name: size for name, (size, _) in sums.files.items()} == FILES
    check(folder)


def test_one_flipped_bit_anywhere_is_noticed(folder):
    for name in [*FILES, NAME]:
        path = folder / name
        whole = path.read_bytes()
        for at in range(0, len(whole), 331 if len(whole) > 1000 else 1):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << at % 8
            path.write_bytes(damaged)
            with pytest.raises(ChecksumError, match=name):
                check(folder)
        path.write_bytes(whole)
    check(folder)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""])
def test_another_length_and_a_missing_file_are_noticed(folder, damage):
    for name in ("a/large", "b"):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        with pytest.raises(ChecksumError, match=f"{name} has .* bytes, not {len(whole)}"):
            check(folder)
        path.unlink()
        with pytest.raises(ChecksumError, match=f"{name} is missing"):
            check(folder)
        path.write_bytes(whole)


def test_swapped_files_and_edited_contents_of_the_checksums_are_noticed(folder):
    values = json.loads((folder / NAME).read_text())
    for edit in ({"about": {"step": 4}}, {"files": {}}):
        (folder / NAME).write_text(json.dumps(values | edit))
        with pytest.raises(ChecksumError, match=f"{NAME} is damaged"):
            Checksums.read(folder)
    for text in (b"", b"[]", b"{}", b"\xff", b"5", b"[" * 100_000):
        (folder / NAME).write_bytes(text)
        with pytest.raises(
            ChecksumError, match=f"{NAME} (is damaged|is not valid JSON|must hold a JSON object)"
        ):
            Checksums.read(folder)


def test_processes_share_the_blocks_and_leave_none_out(folder):
    path = folder / "a/large"
    whole = path.read_bytes()
    for at in (0, 2048, 4999):  # one in each block
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        noticed = 0
        for process in range(3):
            try:
                check(folder, share=(process, 3))
            except ChecksumError:
                noticed += 1
        assert noticed == 1
    check(folder, within=["b", "empty"])
    with pytest.raises(ChecksumError):
        check(folder, within=["a/"])


def test_what_changes_after_it_was_read_in_the_background_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "_PIECE", 16)
    read = []
    take = checksums.block_checksum
    monkeypatch.setattr(
        checksums, "block_checksum", lambda path, n: read.append(path.name) or take(path, n)
    )
    hasher = Hasher(tmp_path, interval=0.001)
    for name in ("kept", "changed"):
        (tmp_path / name).write_bytes(b"1" * 100)
    (tmp_path / "small").write_bytes(b"1" * 15)
    while not {"kept", "changed"} <= set(read):
        time.sleep(0.001)
    (tmp_path / "changed").write_bytes(b"2" * 100)
    (tmp_path / "new").write_bytes(b"3")
    renamed = tmp_path.rename(tmp_path.with_name("renamed"))
    sums = hasher.finish(renamed, {})
    assert set(sums.files) == {"kept", "changed", "small", "new"}
    assert read.count("kept") == 1 and read.count("small") == 1
    sums.write(renamed)
    check(renamed)
