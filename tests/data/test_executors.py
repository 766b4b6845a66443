"""Slurm: the same bytes, by tasks that a stand-in for its commands runs in processes of their own."""

import os

import pytest

from t6jax import InputError
from t6jax.data import executors
from t6jax.data.prepare import prepare
from tests.data import corpora

pytestmark = pytest.mark.slow
SMALL = {"shard_tokens": 10_000, "unit_bytes": 80_000}
COMMANDS = {
    "sbatch": """
script=$(mktemp); cp "${@: -1}" $script
last=$(sed -n 's/#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' $script)
export SLURM_NODELIST=here SLURM_JOB_ID=7
(for i in $(seq 0 $last); do env -i HOME=$HOME PATH=$CLEAN_PATH SLURM_NODELIST=here SLURM_ARRAY_TASK_ID=$i bash $script; done
 touch $FINISHED) >$FINISHED.log 2>&1 &
echo Submitted batch job 7""",
    "srun": """while [ "$1" != launch_pickled_pipeline ]; do shift; done; exec "$@" """,
    "scontrol": "echo here",
    "squeue": "test -e $FINISHED || echo 7 running",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in COMMANDS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CLEAN_PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("FINISHED", str(tmp_path / "finished"))
    monkeypatch.setattr(executors, "SLURM_ASKED_SECONDS", 0.5)
    return {"executor": "slurm", "workers": 2, "executor_options": {"partition": "cpu", "time": "1:00:00"}}


def test_slurm_makes_the_same_bytes(slurm, tmp_path):
    corpora.write_parquet(tmp_path / "a.parquet", corpora.documents(400))
    prepare(str(tmp_path / "a.parquet"), tmp_path / "local", "bytes", 0.01, **SMALL)
    prepare(str(tmp_path / "a.parquet"), tmp_path / "slurm", "bytes", 0.01, **SMALL, **slurm)
    assert corpora.content(tmp_path / "slurm") == corpora.content(tmp_path / "local")


def test_a_task_that_failed_on_slurm_is_told(slurm, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 1000 + '{"text": ')
    with pytest.raises(InputError, match="a task of the slurm executor failed; see .*datatrove"):
        prepare(str(tmp_path / "a.jsonl"), tmp_path / "out", "bytes", 0.01, **SMALL, **slurm)
