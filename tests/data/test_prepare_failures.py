"""Preparing when something else happens: a second process, a full disk, damaged working files."""

import errno
import json
import os
import shutil
import signal
import threading

import pytest

from t6jax import InputError
from t6jax.data import prepare as prepare_module
from t6jax.data import tokenized, train_tokenizer
from t6jax.data.manifest import MANIFEST
from t6jax.data.prepare import LOCK, main, prepare
from t6jax.data.tokenized import tokenize_unit
from t6jax.data.tokenizers import ByteTokenizer, get_tokenizer
from tests.conftest import ROOT
from tests.data import corpora

SMALL = {"shard_tokens": 4000, "unit_bytes": 4000}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "a.jsonl"
    corpora.write_jsonl(path, corpora.documents(60))
    return str(path)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """What an unbroken preparation makes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare(source, out, "bytes", 0.01, **SMALL)
    return out


class Stop(Exception):
    pass


def stop_after(monkeypatch, units):
    """The next preparation ends like one that is killed, after so many units."""

    def poll(self, work, index):
        if index == units:
            raise Stop
        tokenize_unit(work, index)
        return True

    monkeypatch.setattr("t6jax.data.executors.InProcess.poll", poll)


@pytest.fixture
def interrupted(source, tmp_path):
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(monkeypatch, 4)
        with pytest.raises(Stop):
            prepare(source, tmp_path / "out", "bytes", 0.01, **SMALL)
    work = tmp_path / "out.partial"
    tokenize_unit(work, 4)
    assert [*work.glob("*.bin")] and [*work.glob("tokenized/*.npz")]
    return work


def test_another_process_that_ends_meanwhile_has_made_it(source, whole, tmp_path, monkeypatch):
    """Between the look for OUT and the lock, whichever of its steps the other has come to."""
    out = tmp_path / "out"
    make_plan = prepare_module.make_plan

    def slow_plan(*args, **options):
        monkeypatch.setattr(prepare_module, "make_plan", make_plan)
        prepare(source, out, "bytes", 0.01, **SMALL)
        return make_plan(*args, **options)

    monkeypatch.setattr(prepare_module, "make_plan", slow_plan)
    prepare(source, out, "bytes", 0.01, **SMALL)
    assert corpora.content(out) == corpora.content(whole)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_another_process_that_renames_the_folder_as_it_is_locked(
    source, whole, tmp_path, monkeypatch
):
    out, work = tmp_path / "out", tmp_path / "out.partial"
    lock, ends = prepare_module.exclusive_lock, iter(["before", "after"])

    def racing(path, message):
        if end := next(ends, None):
            moved = tmp_path / end
            work.rename(moved)
            if end == "after":
                (moved / LOCK).touch()
                shutil.copytree(whole, out)
                return lock(moved / LOCK, message)
        return lock(path, message)

    # the folder is gone before the lock file is opened, then after that
    monkeypatch.setattr(prepare_module, "exclusive_lock", racing)
    prepare(source, out, "bytes", 0.01, **SMALL)
    assert corpora.content(out) == corpora.content(whole) and not work.exists()


def test_of_many_at_once_one_prepares_and_nothing_is_left(source, whole, tmp_path):
    said, out = [], tmp_path / "out"

    def run():
        try:
            prepare(source, out, "bytes", 0.01, **SMALL)
            said.append("prepared")
        except Exception as e:
            said.append(f"{type(e).__name__}: {e}")

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    busy = f"InputError: another process is preparing {out}, in {out}.partial: wait for it to end"
    assert "prepared" in said and {*said} <= {"prepared", busy}
    assert corpora.content(out) == corpora.content(whole)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_lock_that_a_killed_process_left_in_what_it_finished_is_removed(source, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / LOCK).touch()
    prepare(source, tmp_path / "out", "bytes", 0.01, **SMALL)
    assert corpora.content(tmp_path / "out") == corpora.content(whole)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_out_in_its_own_source_goes_on(suffix, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    for i, text in enumerate(corpora.documents(30)):
        (source / f"{i:02d}{suffix}").write_text(
            text if suffix == ".txt" else json.dumps({"text": text})
        )
    prepare(str(source), tmp_path / "whole", "bytes", 0.1, **SMALL)
    for _ in range(2):
        with monkeypatch.context() as patch:
            stop_after(patch, 4)
            with pytest.raises(Stop):
                prepare(str(source), source / "out", "bytes", 0.1, **SMALL)
    prepare(str(source), source / "out", "bytes", 0.1, **SMALL)
    assert corpora.all_tokens(source / "out") == corpora.all_tokens(tmp_path / "whole")
    tokenized._tokenizer.cache_clear()


def flip_digit(path):
    """The first digit 1 to 8 after the middle of a text is another."""
    data = bytearray(path.read_bytes())
    at = next(i for i in range(len(data) // 2, len(data)) if data[i] in b"12345678")
    data[at] += 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def of_another_type(path):
    path.write_text("[1]")


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def without_a_key(path):
    values = json.loads(path.read_text())
    del values[next(iter(values))]
    path.write_text(json.dumps(values))


def nested(path):
    path.write_text("[" * 100_000)


@pytest.mark.parametrize("damage", [flip_digit, cut, of_another_type, fifo, without_a_key, nested])
@pytest.mark.parametrize("name", ["settings.json", "plan.json", "state.json"])
def test_a_damaged_working_file_is_named(source, interrupted, name, damage):
    damage(interrupted / name)
    with pytest.raises(
        InputError,
        match=rf"{name} .*delete .*out\.partial to start again|{name} is no regular file",
    ):
        prepare(source, interrupted.with_suffix(""), "bytes", 0.01, **SMALL)


@pytest.mark.parametrize("damage", [flip_digit, cut, lambda path: path.write_bytes(b"PK\3\4" * 50)])
def test_a_damaged_unit_is_made_again(source, whole, interrupted, damage):
    [path] = [*interrupted.glob("tokenized/*.npz")][-1:]
    damage(path)
    with pytest.raises(InputError, match="was damaged, and is deleted: give the same command"):
        prepare(source, interrupted.with_suffix(""), "bytes", 0.01, **SMALL)
    prepare(source, interrupted.with_suffix(""), "bytes", 0.01, **SMALL)
    assert corpora.content(interrupted.with_suffix("")) == corpora.content(whole)


def test_a_damaged_tokenizer_in_the_working_folder_is_named(source, tmp_path, monkeypatch):
    train_tokenizer.train_tokenizer(str(ROOT / "configs"), tmp_path / "a.json", 300)
    arguments = (source, tmp_path / "out", str(tmp_path / "a.json"), 0.01)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stop):
            prepare(*arguments, **SMALL)
    tokenized._tokenizer.cache_clear()
    kept = tmp_path / "out.partial" / "tokenizer.json"
    kept.write_text(kept.read_text().replace('"id": 0', '"id":  0', 1))
    with pytest.raises(InputError, match="the tokenizer in .* is not the one that it was begun"):
        prepare(*arguments, **SMALL)


@pytest.mark.parametrize("call", ["fsync", "mkdir", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_cannot_be_written_to_is_named(source, tmp_path, monkeypatch, call, number):
    def fail(*args, **options):
        raise OSError(number, os.strerror(number), None)

    name = {"fsync": "os.fsync", "mkdir": "os.mkdir", "rename": "os.rename"}[call]
    with monkeypatch.context() as patch:
        patch.setattr(name, fail)
        message = f"cannot be written .{os.strerror(number)}.: free space or check permissions"
        with pytest.raises(InputError, match=f"{tmp_path}.* {message}"):
            prepare(source, tmp_path / "out", "bytes", 0.01, **SMALL)
        with pytest.raises(InputError, match=f"{tmp_path}.* {message}"):
            out = tmp_path / "folder" / "a.json"
            train_tokenizer.train_tokenizer(str(ROOT / "configs"), out, 300)
    assert not [*tmp_path.rglob("*.json.*.partial")]
    prepare(source, tmp_path / "out", "bytes", 0.01, **SMALL)


def test_out_under_a_file_is_named(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/out.partial cannot be written .Not a directory."):
        prepare(source, tmp_path / "file" / "out", "bytes", 0.01)


def test_counts_and_paths_that_cannot_be_are_refused_before_tokenizing(source, tmp_path):
    out = f"--out={tmp_path / 'out'}"
    for flags, message in (
        ([out, "--shard_tokens=2147483648"], "--shard_tokens must be at least 2 and at most 2,147"),
        ([out, "--shard_tokens=-1"], "--shard_tokens must be at least 2"),
        ([out, "--unit_bytes=0"], "--unit_bytes must be at least 1; got 0"),
        ([out, "--workers=-1"], "--workers must be at least 1"),
        ([out, "--source="], "data.source is empty"),
        (["--out="], "the path is empty"),
        (["--out=."], "--out must name a folder to make"),
    ):
        with pytest.raises(InputError, match=message):
            main([f"--source={source}", "--tokenizer=bytes", *flags])
    assert not [*tmp_path.iterdir()]


def test_out_may_begin_at_the_home_folder(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    main([f"--source={source}", "--tokenizer=bytes", "--out=~/out"])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("size", [2, 10, 49])
def test_a_text_of_a_few_bytes_has_training_and_validation(size, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"0123456789\n" * 4 + b"01234" if size > 10 else b"x" * size)
    manifest = prepare(str(tmp_path / "a.txt"), tmp_path / "out", "bytes", 0.01)
    assert manifest["train"]["tokens"] > 1 and manifest["val"]["tokens"] > 1


def test_no_character_is_cut_in_two(tmp_path):
    (tmp_path / "a.txt").write_text("日本語" * 50)
    for fraction in (0.011, 0.1, 0.22, 0.5):
        prepare(str(tmp_path / "a.txt"), tmp_path / f"{fraction}", "bytes", fraction)
        tokens = corpora.all_tokens(tmp_path / f"{fraction}")
        starts = [i for i, token in enumerate(tokens) if token == 256]
        for start, stop in zip(starts, [*starts[1:], None], strict=True):
            bytes(tokens[start + 1 : stop]).decode()


def test_a_document_that_cannot_be_tokenized_is_named(source, tmp_path, monkeypatch):
    class Failing(ByteTokenizer):
        def encode(self, text):
            if len(text) > 300:
                raise ValueError("stack size exceeded")
            return super().encode(text)

    monkeypatch.setattr("t6jax.data.tokenized.kept_tokenizer", lambda folder, name: Failing())
    with pytest.raises(
        InputError,
        match=r"a.jsonl: document \d+ of those from 0 to 4000, with [\d,]+ bytes, which begins "
        r"with ['\"].*['\"], cannot be tokenized by bytes \(ValueError: stack size exceeded\): ",
    ):
        prepare(source, tmp_path / "out", "bytes", 0.01, **SMALL)


def test_what_opens_a_url_is_in_no_file_and_no_message(source, tmp_path, monkeypatch):
    import fsspec

    memory = fsspec.filesystem("memory")
    text = "".join(json.dumps({"text": t}) + "\n" for t in corpora.documents(30))
    memory.pipe_file("/host/a.jsonl", text.encode())
    real = prepare_module.make_plan
    url = "memory://user:pass@host/?sig=secret"

    def plan(source, *args, **options):
        assert source == url
        made = real("memory://host", *args, **options)
        return prepare_module.dataclasses.replace(made, folder=url)

    opened = tokenized.read_unit
    public = lambda plan, unit: opened(
        prepare_module.dataclasses.replace(plan, folder="memory://host"), unit
    )
    monkeypatch.setattr(prepare_module, "make_plan", plan)
    monkeypatch.setattr(tokenized, "read_unit", public)
    said: list[str] = []
    small = SMALL | {"unit_bytes": 400}
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stop):
            prepare(url, tmp_path / "out", "bytes", 0.1, say=said.append, **small)
    plan_file = tmp_path / "out.partial" / "plan.json"
    assert "secret" in plan_file.read_text() and plan_file.stat().st_mode & 0o077 == 0
    url = url.replace("secret", "another")  # the signature is a new one
    prepare(url, tmp_path / "out", "bytes", 0.1, say=said.append, **small)
    kept = b"".join(corpora.content(tmp_path / "out").values()).decode("latin-1") + str(said)
    assert '"source": "memory://host/"' in kept and "continuing" in kept
    assert not any(word in kept for word in ("secret", "another", "pass@", "user:"))


def test_ctrl_c_ends_train_tokenizer_at_once(monkeypatch, tmp_path, capsys):
    handlers = []
    before = signal.getsignal(signal.SIGINT)
    try:
        monkeypatch.setattr(
            train_tokenizer,
            "train_tokenizer",
            lambda **options: handlers.append(signal.getsignal(signal.SIGINT)) or 0,
        )
        train_tokenizer.main(["--source=x", f"--out={tmp_path}/a.json", "--vocab_size=300"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert handlers == [signal.SIG_DFL]


def test_long_words_are_learnt_from_in_pieces(tmp_path):
    texts = ["a b " + "x" * 2500 + " end", "some words here " * 20 + " " * 999 + "y" * 1001, "z"]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    plan = train_tokenizer.make_plan(str(tmp_path), validation_fraction=0.1, validation_bytes=0)
    pieces = [*train_tokenizer._pieces(plan, None)]
    assert "".join(sorted("".join(pieces))) == "".join(sorted("".join(texts)))
    assert [len(p) for p in pieces if "x" in p] == [1004, 1000, 504]
    assert max(len(word) for piece in pieces for word in piece.split()) <= 1000
    tokenizer = tmp_path / "a.json"
    train_tokenizer.train_tokenizer(str(tmp_path), tokenizer, 300)
    assert get_tokenizer(str(tokenizer)).encode(b"xxxx").tolist()


def test_max_bytes_must_be_some(tmp_path):
    with pytest.raises(InputError, match="--max_bytes must be at least 1; got 0"):
        train_tokenizer.train_tokenizer(
            str(ROOT / "configs"), tmp_path / "a.json", 300, max_bytes=0
        )


def test_the_manifest_of_a_finished_folder_is_checked(source, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    flip_digit(tmp_path / "out" / MANIFEST)
    with pytest.raises(InputError, match="manifest.json is damaged, its checksum does not match"):
        prepare(source, tmp_path / "out", "bytes", 0.01, **SMALL)
