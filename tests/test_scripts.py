"""The launch scripts: this jaxlib knows their XLA flags, and they start train.py on their mesh."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, process_options


@pytest.mark.slow
def test_every_xla_flag_of_the_scripts_exists():
    code = "import jax, os; jax.devices(); print(os.environ['XLA_FLAGS'])"
    run = ["bash", "-c", f'source scripts/gpu_flags.sh && "{sys.executable}" -c "{code}"']
    done = subprocess.run(run, **process_options(), capture_output=True, check=False)
    assert done.returncode == 0, (
        done.stderr
    )  # XLA ends a process that gives it a flag it does not know
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in done.stdout


def test_one_node_shards_parameters_over_its_gpus_and_the_users_flags_come_last(tmp_path):
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    copy = tmp_path / "copy" / "scripts"
    copy.mkdir(parents=True)
    for name in ("train_node.sh", "gpu_flags.sh"):
        (copy / name).write_text((ROOT / "scripts" / name).read_text())
    options = process_options()
    options["env"] |= {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    run = ["bash", str(copy / "train_node.sh"), "configs/xl_tpa.py", "--config.mesh.fsdp=4"]
    done = subprocess.run(run, **options, capture_output=True, check=True)
    want = (
        "train.py --config=configs/xl_tpa.py --config.mesh.data=1 --config.mesh.fsdp=-1 "
        "--config.mesh.fsdp=4\n"
    )
    assert done.stdout == want


@pytest.mark.parametrize(("status", "requeued"), [(0, ""), (1, ""), (143, "requeue 7\n")])
def test_slurm_shards_parameters_over_a_nodes_processes_and_requeues_a_stopped_job(
    tmp_path, status, requeued
):
    for name, text in {"srun": f'echo "${{@:3}}"; exit {status}', "scontrol": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    options = process_options()
    options["env"] |= {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_JOB_ID": "7",
    }
    run = [
        "bash",
        "scripts/train_slurm.sh",
        "configs/xl_tpa.py",
        "--config.steps=9",
        "--workdir=a b",
    ]
    done = subprocess.run(run, **options, capture_output=True, check=False)
    assert done.returncode == status
    flags = (
        "--config=configs/xl_tpa.py --config.mesh.data=-1 --config.mesh.fsdp=4 "
        "--config.steps=9 --workdir=a b"
    )
    assert done.stdout == f"train.py {flags}\n{requeued}"


def test_scripts_are_valid_bash():
    for path in (ROOT / "scripts").glob("*.sh"):
        subprocess.run(["bash", "-n", str(path)], check=True)
