"""What keeps a process from joining the others of its run is told whole, with what to do."""

import jax
import pytest

from t6jax import InputError
from t6jax.training import processes

NAMES = ("SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_SERVICE_HOST")
LAUNCHERS = (
    {"SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "2"},
    {"OMPI_COMM_WORLD_SIZE": "2"},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def joined(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append(args))
    return calls


def test_a_process_without_launcher_and_flags_is_alone(joined):
    processes.start(None, None, None, 60)
    assert not joined


@pytest.mark.parametrize("environment", LAUNCHERS, ids=("Slurm", "Open MPI", "Kubernetes"))
def test_a_launchers_processes_join(joined, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.start(None, None, None, 60)
    assert joined == [(None, None, None)]


def test_flags_name_all_or_none(joined):
    with pytest.raises(InputError, match="together"):
        processes.start("localhost:1", 2, None, 60)
    processes.start("localhost:1", 2, 0, 60)
    assert joined == [("localhost:1", 2, 0)]


@pytest.mark.parametrize("error", [RuntimeError, ValueError, OSError])
def test_why_it_cannot_join_is_told_whole(monkeypatch, joined, error):
    def fail(*_, **__):
        raise RuntimeError("Retry failed") from error("Pods need a headless service.\nkind: Service\n")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"(?s)failed, because: Pods need a headless service.*kind: Service.*--coordinator"):
        processes.start(None, None, None, 60)
