"""Atomic writing and locks: what a reader or another process can see."""

import os
import subprocess
import sys

import pytest

from t6jax import InputError
from t6jax.files import atomic_file, exclusive_lock, write_atomically
from tests.conftest import process_options


def test_text_and_bytes_are_written_whole(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "été")
    assert path.read_bytes() == "été".encode()
    write_atomically(path, b"\0\1")
    assert path.read_bytes() == b"\0\1"
    assert [*tmp_path.iterdir()] == [path]


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"ne")
        assert path.read_text() == "old"
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_the_bytes_are_durable_before_the_file_is_renamed(tmp_path, monkeypatch):
    path, seen = tmp_path / "a", []
    fsync = os.fsync

    def record(descriptor):
        fsync(descriptor)
        seen.append((os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", record)
    write_atomically(path, b"12345")
    assert seen == [(5, False)]


def test_a_lock_keeps_other_processes_out_until_its_block_ends(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import pathlib, sys; from t6jax.files import exclusive_lock\n"
        "with exclusive_lock(pathlib.Path(sys.argv[1]), 'busy'): pass"
    )
    run = [sys.executable, "-c", code, str(path)]
    attempt = lambda: subprocess.run(run, **process_options(), capture_output=True, check=False)
    with exclusive_lock(path, "unused"):
        assert "InputError: busy" in attempt().stderr
        with pytest.raises(InputError, match="twice"), exclusive_lock(path, "twice"):
            pass
    assert attempt().returncode == 0
