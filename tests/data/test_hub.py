"""A data set on the hub, read over HTTP by the hub's own clients, gives the bytes that its files
give from a folder.
"""

import itertools
import json
import os
import shutil
import subprocess
import threading

import pyarrow.parquet as pq
import pytest
from datatrove.io import DataFolder
from huggingface_hub import HfFileSystem, constants

from t6jax.command_line import exit_status
from t6jax.data import records, remote, sources
from t6jax.data.manifest import MANIFEST
from t6jax.data.prepare import main, prepare
from tests.conftest import process_options
from tests.data import corpora
from tests.data.hub import NAME, TOKEN, serving
from tests.data.test_prepare import command

SUBSET = "sample-100BT"
URL_PATH = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Files of a subset by their paths on the hub, and the shards that a folder of them gives."""
    folder = tmp_path_factory.mktemp("local")
    for i in range(3):
        corpora.write_parquet(
            folder / "source" / f"{i:03d}_00000.parquet",
            corpora.documents(400, seed=i),
            rows_a_group=30,
        )
    prepare(str(folder / "source"), folder / "out", "bytes", 0.01, shard_tokens=50_000)
    return {
        f"sample/100BT/{p.name}": p.read_bytes() for p in sorted((folder / "source").iterdir())
    }, shards(folder / "out")


@pytest.fixture
def hub(local):
    with serving() as hub:
        first, *others = local[0].items()
        dumps = {f"data/CC-MAIN-2013-20/{first[0][-17:]}": first[1]} | {
            f"data/CC-MAIN-2024-10/{p[-17:]}": b for p, b in others
        }
        hub.commit(local[0] | dumps | {"sample/10BT/000_00000.parquet": b"?"})
        yield hub


def shards(out) -> dict[str, bytes]:
    return {name: data for name, data in corpora.content(out).items() if name != MANIFEST}


@pytest.fixture
def here(hub, tmp_path, monkeypatch, capsys):
    """Runs the program in this process, whose hub is the test's: (out, flags) -> what it prints."""

    def run(out, *flags, subset=SUBSET, source=NAME, status=0, **environment) -> str:
        remote.opened.cache_clear()
        records._metadata_of_last.cache_clear()
        for kind in (HfFileSystem, DataFolder):  # they keep what they read
            kind.clear_instance_cache()
        endpoint = environment.pop("HF_ENDPOINT", hub.url)
        for name, value in (
            ("ENDPOINT", endpoint),
            ("HUGGINGFACE_CO_URL_TEMPLATE", endpoint + URL_PATH),
            ("HF_HUB_DOWNLOAD_TIMEOUT", 1),
            ("HF_HUB_OFFLINE", bool(environment.pop("HF_HUB_OFFLINE", ""))),
            ("HF_TOKEN_PATH", str(tmp_path / "no_token")),
        ):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", environment.pop("HF_TOKEN", ""))
        assert not environment
        arguments = [*command(source, out)[3:], "--unit_bytes=4000", f"--subset={subset}"]
        assert exit_status(lambda: main([*arguments, "--workers=1", *flags])) == status
        return "".join(capsys.readouterr())

    return run


def start(hub, out, *flags, subset=SUBSET, source=NAME, **environment) -> subprocess.Popen:
    # of units 8 times as large, as over any network
    run = [*command(source, out), "--unit_bytes=4000", f"--subset={subset}", *flags]
    home = {
        "HF_HOME": str(out.with_name("home")),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
    }
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    options = process_options() | {"env": kept | {"JAX_PLATFORMS": "cpu"} | home | environment}
    return subprocess.Popen(run, **options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def end(process: subprocess.Popen, status: int = 0) -> str:
    output, errors = process.communicate(timeout=100)
    assert process.returncode == status and "Traceback" not in errors, output + errors
    return output + errors


def test_the_bytes_of_a_folder_each_asked_for_once(hub, here, local, tmp_path):
    files, want = local
    here(tmp_path / "1")
    assert shards(tmp_path / "1") == want
    assert json.loads((tmp_path / "1" / MANIFEST).read_text())["revision"] == [*hub.commits][-1]
    read = [r for r in hub.requests if r.kind == "cdn"]
    assert {r.path for r in read} == set(files)
    # the footers, with what lies before them in so small a file, for the plan and again for the
    # units
    footers = [r for r in read if r.stop == len(files[r.path])]
    assert len(footers) <= 2 * 2 * len(files)
    for path, data in files.items():
        (tmp_path / "file").write_bytes(data)
        metadata = pq.read_metadata(tmp_path / "file")
        groups = [metadata.row_group(i).column(0) for i in range(metadata.num_row_groups)]
        spans = [
            (g.dictionary_page_offset, g.dictionary_page_offset + g.total_compressed_size)
            for g in groups
        ]
        texts = sorted((r.start, r.stop) for r in read if r.path == path and r not in footers)
        assert 1 < len(texts) < len(groups), "a request has several row groups"
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(texts)), "no byte twice"
        assert all(any(a <= first and last <= b for a, b in texts) for first, last in spans)
    assert (hub.count("info"), hub.count("paths")) == (2, 0) and hub.count("tree") == 2


def test_a_url_of_a_gated_data_set_with_a_token_and_several_workers(hub, local, tmp_path):
    hub.gated = True
    end(
        start(
            hub,
            tmp_path / "2",
            "--workers=2",
            source=f"hf://datasets/{NAME}/",
            subset="sample/100BT",
            HF_TOKEN=TOKEN,
        )
    )
    assert shards(tmp_path / "2") == local[1]
    assert json.loads((tmp_path / "2" / MANIFEST).read_text())["revision"] == [*hub.commits][-1]
    assert all(r.authorized for r in hub.requests if r.kind == "resolve")
    assert not any(r.authorized for r in hub.requests if r.kind == "cdn"), (
        "the token is the hub's alone"
    )


def test_what_passes_is_waited_for(hub, here, local, tmp_path):
    left = {"info": [503], "tree": [503], "resolve": [429], "cdn": ["cut", "stall"]}
    lock = threading.Lock()

    def fault(request):
        with lock:
            # spread, or one read would have them all
            due = request.kind in ("info", "tree") or len(hub.requests) % 3 == 0
            return left[request.kind].pop(0) if due and left.get(request.kind) else None

    hub.fault = fault
    output = here(tmp_path / "out", subset="")
    assert not any(left.values())
    assert "retrying in 1 s: data.source='HuggingFaceFW/fineweb-edu' is no local folder" in output
    assert shards(tmp_path / "out") == local[1]


def test_what_does_not_pass_is_one_sentence(hub, here, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_first", lambda call: call())  # without waits between attempts
    hub.gated = True
    runs = {
        "missing": (
            {"source": "a/b"},
            "data.source='a/b' is no local folder, and hf://datasets/a/b is refused by the Hugging "
            "Face hub",
        ),
        "with a token": (
            {"source": "a/b", "HF_TOKEN": TOKEN},
            "a/b is not on the Hugging Face hub, or is private: check the name",
        ),
        "subset": (
            {"subset": "sample-1BT"},
            f"{NAME} has no subset 'sample-1BT'; it has default, sample-10BT, sample-100BT",
        ),
        "gated": (
            {},
            "_00000.parquet is gated: ask for access on its page, and set HF_TOKEN to a token of "
            "yours",
        ),
        "offline": (
            {"HF_HUB_OFFLINE": "1"},
            "cannot be fetched: unset HF_HUB_OFFLINE, or give a folder of downloaded files",
        ),
        "no network": ({"HF_ENDPOINT": "http://localhost:9"}, "cannot be read (ConnectError: "),
    }
    for options, message in runs.values():
        *others, last = here(tmp_path / "out", status=1, **options).splitlines()
        assert last.startswith("error: ") and message in last and others == []
    assert [*tmp_path.glob("out*")] == []


@pytest.mark.slow
def test_killed_it_goes_on_with_the_revision_it_began_with(hub, local, tmp_path):
    reached, released = threading.Event(), threading.Event()

    def fault(request):
        if (
            request.kind == "cdn"
            and request.path.endswith("001_00000.parquet")
            and request.start < 100
        ):
            reached.set()
            released.wait(60)

    hub.fault = fault
    process = start(hub, tmp_path / "out")
    try:
        assert reached.wait(60)
        process.kill()
        process.communicate()
    finally:
        hub.fault = lambda request: None
        released.set()
    work = tmp_path / "out.partial"
    assert [*work.glob("tokenized/*.npz"), *work.glob("*.bin")]
    shutil.copytree(work, tmp_path / "gone.partial")
    [began] = hub.commits
    now = hub.commit(
        {path: data[:4] + data for path, data in local[0].items()}
        | {"sample/100BT/zzz.parquet": b"?"}
    )
    assert f"continuing in {work} with revision {began}" in end(start(hub, tmp_path / "out"))
    assert shards(tmp_path / "out") == local[1]
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["revision"] == began != now
    del hub.commits[began]
    *_, last = end(start(hub, tmp_path / "gone", "--workers=1"), status=1).splitlines()
    assert (
        began in last
        and "does not have that revision (any more): check it, and delete the .partial folder"
        in last
    )
