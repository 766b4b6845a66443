"""Preparing: the shards hold every byte of every document, and the manifest is true."""

import hashlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from t6jax import InputError, sealed_json
from t6jax.command_line import exit_status
from t6jax.data import prepare as prepare_module
from t6jax.data import shards as shards_module
from t6jax.data import tokenized
from t6jax.data.documents import documents, split
from t6jax.data.manifest import MANIFEST, check_data, read_manifest
from t6jax.data.prepare import main, prepare
from t6jax.data.shards import find_shards
from t6jax.data.tokenizers import ByteTokenizer
from t6jax.files import exclusive_lock, write_atomically
from tests.conftest import process_options
from tests.data import corpora


def test_shards_hold_every_document_after_a_start_token(texts, tmp_path):
    out = tmp_path / "data"
    manifest = prepare(str(texts), out, "bytes", 0.25, shard_tokens=5000)
    training, validation = split(documents(str(texts)), 0.25)
    for name, want in (("train", training), ("val", validation)):
        shards = find_shards(out, name)
        tokens = np.concatenate([corpora.open_shard(p) for p in shards])
        assert tokens.tolist() == [t for d in want for t in (256, *d.read())]
        assert manifest[name]["documents"] == len(want)
        assert manifest[name]["bytes"] == sum(d.size for d in want)
        assert manifest[name]["tokens"] == len(tokens)
        assert [s["tokens"] for s in manifest[name]["shards"]] == [
            len(corpora.open_shard(p)) for p in shards
        ]
        assert all(s["tokens"] == 5000 for s in manifest[name]["shards"][:-1])
    assert len(find_shards(out, "train")) > 2
    assert read_manifest(out) == manifest
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


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """Two Parquet files and their documents, among them empty ones and one of a third of all
    tokens.
    """
    folder = tmp_path_factory.mktemp("parquet")
    found = [*corpora.documents(150), "huge " * 8000, *corpora.documents(150, seed=1)]
    corpora.write_parquet(folder / "000_00000.parquet", corpora.with_empty_ones(found[:170]))
    corpora.write_parquet(folder / "001_00000.parquet", corpora.with_empty_ones(found[170:]))
    return folder, found


SMALL = {"shard_tokens": 10_000, "unit_bytes": 4000}


def test_records_fill_shards_in_order_the_first_for_validation(parquet, tmp_path):
    folder, found = parquet
    manifest = prepare(str(folder), tmp_path / "out", "bytes", 0.01, **SMALL)
    assert corpora.all_tokens(tmp_path / "out") == corpora.byte_tokens(found)
    names = [s["file"] for split in ("val", "train") for s in manifest[split]["shards"]]
    assert (
        names == ["val_000000.bin", *(f"train_{i:06d}.bin" for i in range(1, len(names)))]
        and len(names) > 5
    )
    counts = [s["tokens"] for split in ("val", "train") for s in manifest[split]["shards"]]
    assert set(counts[:-1]) == {10_000} and 0 < counts[-1] <= 10_000
    of = lambda key: manifest["val"][key] + manifest["train"][key]
    assert (of("documents"), of("bytes")) == (len(found), sum(len(t.encode()) for t in found))
    starts = corpora.all_tokens(tmp_path / "out")[:10_000].count(256)
    assert manifest["val"]["documents"] == starts
    # the document that the shard's end cuts counts by its share of tokens, here all but one of them
    # bytes
    assert abs(manifest["val"]["bytes"] - (10_000 - starts)) <= 1
    for split_name in ("val", "train"):
        for shard in manifest[split_name]["shards"]:
            assert (
                hashlib.sha256((tmp_path / "out" / shard["file"]).read_bytes()).hexdigest()
                == shard["sha256"]
            )


def test_what_fits_in_one_shard_is_cut_between_documents(parquet, tmp_path):
    folder, found = parquet
    manifest = prepare(str(folder), tmp_path / "out", "bytes", 0.1)
    assert corpora.all_tokens(tmp_path / "out") == corpora.byte_tokens(found)
    share = manifest["val"]["tokens"] / (manifest["val"]["tokens"] + manifest["train"]["tokens"])
    assert 0.05 < share < 0.15
    assert corpora.open_shard(tmp_path / "out" / "train_000001.bin")[0] == 256
    assert manifest["val"]["documents"] + manifest["train"]["documents"] == len(found)


def test_the_bytes_do_not_depend_on_workers_or_units(parquet, tmp_path):
    folder, _ = parquet
    shards = lambda out: {
        name: data for name, data in corpora.content(out).items() if name != MANIFEST
    }
    prepare(str(folder), tmp_path / "1", "bytes", 0.01, **SMALL)
    prepare(str(folder), tmp_path / "3", "bytes", 0.01, workers=3, **SMALL)
    assert corpora.content(tmp_path / "1") == corpora.content(tmp_path / "3")
    prepare(str(folder), tmp_path / "units", "bytes", 0.01, **SMALL | {"unit_bytes": 10**6})
    assert shards(tmp_path / "units") == shards(tmp_path / "1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3", "units"]


def test_jsonl_and_parquet_of_the_same_documents_give_the_same_shards(parquet, tmp_path):
    folder, found = parquet
    (tmp_path / "jsonl").mkdir()
    corpora.write_jsonl(tmp_path / "jsonl" / "a.jsonl", found)
    prepare(str(folder), tmp_path / "1", "bytes", 0.01, **SMALL)
    prepare(str(tmp_path / "jsonl"), tmp_path / "2", "bytes", 0.01, **SMALL)
    assert {k: v for k, v in corpora.content(tmp_path / "1").items() if k != MANIFEST} == {
        k: v for k, v in corpora.content(tmp_path / "2").items() if k != MANIFEST
    }


def test_a_vocabulary_over_65535_is_version_2(tmp_path, monkeypatch):
    class Wide(ByteTokenizer):
        vocab_size = 70_000

    monkeypatch.setattr("t6jax.data.prepare.get_tokenizer", lambda name: Wide())
    monkeypatch.setattr("t6jax.data.tokenized.kept_tokenizer", lambda folder, name: Wide())
    corpora.write_jsonl(tmp_path / "a.jsonl", corpora.documents(20))
    tokenized._tokenizer.cache_clear()
    manifest = prepare(str(tmp_path / "a.jsonl"), tmp_path / "out", "bytes", 0.1)
    tokenized._tokenizer.cache_clear()
    assert np.fromfile(tmp_path / "out" / "val_000000.bin", "<i4", 2).tolist() == [20240520, 2]
    assert corpora.all_tokens(tmp_path / "out") == corpora.byte_tokens(corpora.documents(20))
    with pytest.raises(InputError, match="vocabulary of 70000, larger than model.vocab_size=50304"):
        check_data(tmp_path / "out", "bytes", 50304)
    assert manifest["vocab_size"] == 70_000


def test_after_an_interruption_between_any_two_steps_it_continues(parquet, tmp_path, monkeypatch):
    folder, _ = parquet
    prepare(str(folder), tmp_path / "whole", "bytes", 0.01, **SMALL)

    class Stop(Exception):
        pass

    writes = 0

    def counted(real):
        def write(*args, **kwargs):
            nonlocal writes
            writes += 1
            if writes % 4 == 3:
                raise Stop
            return real(*args, **kwargs)

        return write

    for module in (shards_module, sealed_json):
        monkeypatch.setattr(module, "write_atomically", counted(write_atomically))
    stops = 0
    while stops < 200:
        try:
            prepare(str(folder), tmp_path / "out", "bytes", 0.01, **SMALL)
            break
        except Stop:
            stops += 1
            assert not (tmp_path / "out").exists()
            state = tmp_path / "out.partial" / "state.json"
            reached = json.loads(state.read_text())["unit"] if state.exists() else 0
            left = [int(p.stem) for p in (tmp_path / "out.partial" / "tokenized").glob("*.npz")]
            assert all(unit >= reached for unit in left), "units that shards hold are deleted"
    assert stops > 5
    assert corpora.content(tmp_path / "out") == corpora.content(tmp_path / "whole")


def test_an_interrupted_preparation_continues_only_with_the_same_source_and_settings(
    parquet, tmp_path
):
    _, found = parquet
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    corpora.write_jsonl(source / "a.jsonl", [*found, None])
    with (source / "a.jsonl").open("a") as f:
        f.write('{"text": 3')
    with pytest.raises(InputError, match=r"a\.jsonl is damaged"):
        prepare(str(source), out, "bytes", 0.01, **SMALL)
    with pytest.raises(
        InputError, match="other settings .shard_tokens was 10000, now 9000.: delete it first"
    ):
        prepare(str(source), out, "bytes", 0.01, **SMALL | {"shard_tokens": 9000})
    corpora.write_jsonl(source / "a.jsonl", found)
    with pytest.raises(
        InputError,
        match="changed since .*out.partial was begun: delete .*out.partial to start again",
    ):
        prepare(str(source), out, "bytes", 0.01, **SMALL)


def test_a_finished_preparation_is_left_alone(parquet, tmp_path):
    folder, _ = parquet
    first = prepare(str(folder), tmp_path / "out", "bytes", 0.01, **SMALL)
    assert prepare(str(folder), tmp_path / "out", "bytes", 0.01, workers=2, **SMALL) == first
    with pytest.raises(InputError, match="out exists, but was not prepared with these settings"):
        prepare(str(folder), tmp_path / "out", "bytes", 0.01)


def test_two_preparations_of_one_folder_exclude_each_other(parquet, tmp_path):
    folder, _ = parquet
    work = tmp_path / "out.partial"
    work.mkdir()
    with (
        exclusive_lock(work / prepare_module.LOCK, ""),
        pytest.raises(InputError, match="another process is preparing"),
    ):
        prepare(str(folder), tmp_path / "out", "bytes", 0.01, **SMALL)


def test_what_is_wrong_is_named_with_workers_too(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 10_000 + '{"text": ')
    with pytest.raises(
        InputError,
        match=r"a\.jsonl is damaged: no JSON object in the line at byte 140000",
    ):
        prepare(str(tmp_path / "a.jsonl"), tmp_path / "out", "bytes", 0.01, workers=2, **SMALL)
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match="holds too little text for training and validation"):
        prepare(str(tmp_path / "b.jsonl"), tmp_path / "other", "bytes", 0.01)
    for options, message in (
        ({"workers": 0}, "--workers must be at least 1"),
        ({"executor": "cloud"}, "--executor must be one of local, slurm, ray"),
        ({"shard_tokens": 1}, "--shard_tokens must be at least 2"),
    ):
        with pytest.raises(InputError, match=message):
            prepare(str(tmp_path / "b.jsonl"), tmp_path / "third", "bytes", 0.01, **options)


def command(source, out, *flags) -> list[str]:
    small = ["--tokenizer=bytes", "--shard_tokens=50000", "--unit_bytes=20000", "--workers=2"]
    return [
        sys.executable,
        "-m",
        "t6jax.data.prepare",
        f"--source={source}",
        f"--out={out}",
        *small,
        *flags,
    ]


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Parquet files of some megabytes, and what an unbroken preparation makes of them."""
    folder = tmp_path_factory.mktemp("larger")
    for i in range(3):
        corpora.write_parquet(
            folder / "source" / f"{i:03d}_00000.parquet",
            corpora.documents(1500, seed=i),
            rows_a_group=30,
        )
    prepare(
        str(folder / "source"),
        folder / "whole",
        "bytes",
        0.01,
        shard_tokens=50_000,
        unit_bytes=20_000,
    )
    return folder / "source", corpora.content(folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.exhaustive)])
def test_killed_at_random_points_it_makes_the_bytes_of_an_unbroken_run(larger, tmp_path, count):
    source, whole = larger
    seed = time.time_ns()
    print(f"seed {seed}")
    draw, out = random.Random(seed), tmp_path / "out"
    shards = lambda: len([*tmp_path.glob("out.partial/*.bin")])
    kills = 0
    for share in sorted(draw.uniform(0, 0.9) for _ in range(count)):
        process = subprocess.Popen(
            command(source, out), **process_options(), stdout=subprocess.DEVNULL
        )
        wait_until(lambda share=share: shards() >= share * (len(whole) / 2), process)
        time.sleep(draw.uniform(0, 0.05))
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills == count, "it was done before it was killed"
    done = subprocess.run(
        command(source, out), **process_options(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "continuing in" in done.stdout
    assert re.search(r"[\d.]+ M tokens  [\d.]+ M tokens/s  100.0% of the text", done.stdout)
    assert corpora.content(out) == whole


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named_and_no_process_is_left(larger, tmp_path):
    source, whole = larger
    process = subprocess.Popen(
        command(source, tmp_path / "out"), **process_options(), stderr=subprocess.PIPE
    )
    shards = lambda: len([*tmp_path.glob("out.partial/*.bin")])
    wait_until(lambda: shards() >= 3, process)
    os.kill(descendants(process.pid)[-1], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in error
    assert "a worker process was killed (did memory run out?): give the same command again" in error
    process = subprocess.Popen(
        command(source, tmp_path / "out"), **process_options(), stdout=subprocess.DEVNULL
    )
    before = shards()
    wait_until(lambda: shards() != before, process)
    workers = descendants(process.pid)
    assert len(workers) >= 3
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while alive := [pid for pid in workers if is_alive(pid)]:
        assert time.monotonic() < deadline, f"{alive} are left"
        time.sleep(0.1)
    subprocess.run(
        command(source, tmp_path / "out"), **process_options(), capture_output=True, check=True
    )
    assert corpora.content(tmp_path / "out") == whole


def wait_until(condition, process) -> None:
    """Waits, for a minute at most, until the condition holds or the process has ended."""
    deadline = time.monotonic() + 60
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline, "it has come no further for a minute"
        time.sleep(0.002)


def descendants(pid: int) -> list[int]:
    children = [
        int(c) for c in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]
    for thread in pathlib.Path(f"/proc/{pid}/task").iterdir():
        children += [int(c) for c in (thread / "children").read_text().split()]
    children = sorted(set(children))
    return [*children, *(d for child in children for d in descendants(child))]


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_mistakes_on_the_command_line_end_in_one_sentence(tmp_path, capsys):
    for flags, message in (
        (
            ["--source=nowhere", f"--out={tmp_path}/out", "--tokenizer=bytes"],
            "error: data.source='nowhere': there is no such file",
        ),
        (
            ["--source=t6jax", f"--out={tmp_path}/out", "--executor=slurm"],
            "error: --executor=slurm needs --slurm_partition",
        ),
        (["--source=t6jax"], "the following arguments are required: --out"),
    ):
        assert exit_status(lambda flags=flags: main(flags)) == 1
        assert message in capsys.readouterr().err
    run = [sys.executable, "-m", "t6jax.data.prepare", "--source=t6jax"]
    done = subprocess.run(run, **process_options(), capture_output=True, check=False)
    assert done.returncode == 1 and done.stderr == "error: " + message + "\n"
