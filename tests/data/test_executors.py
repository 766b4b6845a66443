"""Tasks on Slurm and Ray: the same bytes, and what went wrong in one sentence.

Slurm's commands are a stand-in that runs the tasks one after another; where there is a cluster, the
real ones too.
"""

import os
import pathlib
import re
import shutil
import subprocess
import threading
import time

import pytest

from t6jax import InputError
from t6jax.data import executors
from t6jax.data.prepare import prepare
from t6jax.data.tokenized import TOKENIZED
from tests.data import corpora

pytestmark = pytest.mark.slow
SMALL = {"shard_tokens": 10_000, "unit_bytes": 110_000}
COMMANDS = {
    "sbatch": """
script=$(mktemp); cp "${@: -1}" $script
last=$(sed -n 's/#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' $script)
touch $QUEUE/waits
(for i in $(seq 0 $last); do
   test ! -e $QUEUE/waits || env -i HOME=$HOME PATH=$CLEAN_PATH SLURM_NODELIST=here \\
      SLURM_ARRAY_TASK_ID=$i bash $script
 done
 rm -f $QUEUE/waits) >$QUEUE/log 2>&1 &
echo Submitted batch job 7""",
    "scontrol": "echo here",
    "squeue": "if test -e $QUEUE/waits; then echo 7_{0..9}; fi",
    "scancel": "rm -f $QUEUE/waits",
}


def slurm_stand_in(tmp_path, monkeypatch) -> dict:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in COMMANDS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CLEAN_PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("QUEUE", str(tmp_path))
    return slurm("cpu", monkeypatch)


def real_slurm(tmp_path, monkeypatch) -> dict:
    if not shutil.which("sbatch"):
        pytest.skip("there is no Slurm")
    return slurm(
        subprocess.check_output(["sinfo", "--noheader", "--format=%R"], text=True).split()[0],
        monkeypatch,
    )


def slurm(partition, monkeypatch) -> dict:
    monkeypatch.setattr(executors, "SLURM_ASKED_SECONDS", 0.5)
    return {
        "executor": "slurm",
        "workers": 1,
        "executor_options": {"partition": partition, "time": "1:00:00"},
    }


def ray(tmp_path, monkeypatch) -> dict:
    pytest.importorskip("ray", reason="there is no Ray")
    return {"executor": "ray", "workers": 2}


REAL = pytest.param(real_slurm, marks=pytest.mark.exhaustive)  # jobs in a queue that may be long


@pytest.fixture(params=[slurm_stand_in, REAL, ray])
def cluster(request, tmp_path, monkeypatch) -> dict:
    return request.param(tmp_path, monkeypatch)


@pytest.fixture
def source(tmp_path) -> str:
    corpora.write_parquet(tmp_path / "a.parquet", corpora.documents(400))
    prepare(str(tmp_path / "a.parquet"), tmp_path / "local", "bytes", 0.01, **SMALL)
    return str(tmp_path / "a.parquet")


def test_the_same_bytes(cluster, source, tmp_path):
    prepare(source, tmp_path / "out", "bytes", 0.01, **SMALL, **cluster)
    assert corpora.content(tmp_path / "out") == corpora.content(tmp_path / "local")
    assert not (tmp_path / "out.partial").exists()


def test_a_tasks_error_is_told(cluster, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 1000 + '{"text": ')
    with pytest.raises(
        InputError, match="a.jsonl is damaged: no JSON object in the line at byte 14000"
    ):
        prepare(str(tmp_path / "a.jsonl"), tmp_path / "out", "bytes", 0.01, **SMALL, **cluster)


@pytest.mark.parametrize("cluster", [slurm_stand_in, REAL], indirect=True)
def test_cancelled_tasks_are_told_and_the_same_command_goes_on(cluster, source, tmp_path):
    work = tmp_path / "out.partial"
    threading.Thread(target=cancel, args=(work,), daemon=True).start()
    with pytest.raises(
        InputError, match=r"ended without a result \(cancelled, .* same command again to continue"
    ):
        prepare(source, tmp_path / "out", "bytes", 0.01, **SMALL, **cluster)
    assert list((work / TOKENIZED).iterdir())
    prepare(source, tmp_path / "out", "bytes", 0.01, **SMALL, **cluster)
    assert corpora.content(tmp_path / "out") == corpora.content(tmp_path / "local")


def cancel(work: pathlib.Path) -> None:
    """Interrupts as a user does, once a unit is tokenized."""
    deadline = time.monotonic() + 60
    while not list((work / TOKENIZED).glob("*.npz")):
        assert time.monotonic() < deadline, "no unit is tokenized after a minute"
        time.sleep(0.01)
    name = re.search(r"--job-name=(\S+)", (work / "datatrove" / "launch_script.slurm").read_text())[
        1
    ]
    subprocess.run(["scancel", f"--name={name}"], check=True)


@pytest.mark.parametrize("cluster", [slurm_stand_in], indirect=True)
def test_what_a_killed_process_left_is_cancelled_and_a_job_runs_several_tasks(
    cluster, source, tmp_path, monkeypatch
):
    monkeypatch.setattr(executors, "SLURM_ARRAY", 2)
    (tmp_path / "waits").touch()
    prepare(source, tmp_path / "out", "bytes", 0.01, **SMALL, **cluster)
    assert corpora.content(tmp_path / "out") == corpora.content(tmp_path / "local")
    assert (tmp_path / "log").read_text().count("Starting data processing job") == 2


@pytest.mark.parametrize("cluster", [slurm_stand_in], indirect=True)
def test_slurm_takes_no_path_with_spaces(cluster, source, tmp_path):
    with pytest.raises(InputError, match="no path with spaces, as in --out=.*/a b: give another"):
        prepare(source, tmp_path / "a b", "bytes", 0.01, **SMALL, **cluster)


@pytest.mark.parametrize("cluster", [slurm_stand_in], indirect=True)
def test_a_job_that_sbatch_refuses_is_told(cluster, source, tmp_path):
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\nexit 1\n")
    with pytest.raises(
        InputError, match="sbatch failed for the reason above: check --slurm_partition"
    ):
        prepare(source, tmp_path / "out", "bytes", 0.01, **SMALL, **cluster)


@pytest.mark.parametrize(
    ("executor", "needs"), [("slurm", "needs Slurm's commands"), ("ray", "needs Ray: pip install")]
)
def test_without_slurm_or_ray(executor, needs, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"--executor={executor} {needs}"):
        prepare("python", tmp_path / "out", "bytes", 0.01, executor=executor)
