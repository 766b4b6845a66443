"""A process that cannot join the others of its run says why, and what to do."""

import socket
import subprocess
import sys

import jax
import pytest

from t6jax import InputError
from t6jax.parallel import processes
from tests.conftest import process_options

NAMES = (
    "SLURM_PROCID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "OMPI_COMM_WORLD_SIZE",
    "KUBERNETES_SERVICE_HOST",
)
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
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda *args, **options: calls.append((*args, options["coordinator_bind_address"])),
    )
    monkeypatch.setattr(processes, "_prepare_report", lambda: None)
    return calls


def test_a_process_without_launcher_and_flags_is_alone(joined):
    processes.start(None, None, None, 60)
    assert not joined


@pytest.mark.parametrize("environment", LAUNCHERS, ids=("Slurm", "Open MPI", "Kubernetes"))
def test_the_processes_of_a_launcher_join_and_say_so(joined, monkeypatch, environment, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.start(None, None, None, 60)
    assert joined == [(None, None, None, None)]
    assert capsys.readouterr().err.startswith("joining ")


def test_flags_name_all_or_none(joined, capsys):
    with pytest.raises(InputError, match="together"):
        processes.start("localhost:1", 2, None, 60)
    processes.start("localhost:1", 2, 1, 60)
    assert joined == [("localhost:1", 2, 1, None)]
    assert capsys.readouterr().err == "joining 2 processes at localhost:1 as number 1\n"


@pytest.mark.parametrize(
    "address", ["nohost", "nohost:", ":1", "nohost:0", "nohost:65536", "nohost:x", ""]
)
def test_a_wrong_address_is_named(joined, address):
    with pytest.raises(
        InputError, match=f"--coordinator='{address}' must be HOST:PORT of the first process"
    ):
        processes.start(address, 2, 1, 60)


def test_a_port_that_is_in_use_is_named_by_the_process_that_would_listen_there(joined):
    with socket.socket() as s:
        s.bind(("", 0))
        s.listen()
        address = f"localhost:{s.getsockname()[1]}"
        with pytest.raises(
            InputError,
            match=f"--coordinator={address}: this process cannot listen on port .*in use",
        ):
            processes.start(address, 2, 0, 60)
        processes.start(address, 2, 1, 60)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def resolved(monkeypatch, *addresses: str) -> None:
    found = [(2, 1, 6, "", (address, 0)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


@pytest.mark.parametrize(
    ("host", "addresses", "listens"),
    [
        ("localhost", ["127.0.0.1"], "127.0.0.1"),
        ("127.0.0.1", ["127.0.0.1"], "127.0.0.1"),
        ("node1", ["127.0.1.1"], "0.0.0.0"),  # what many systems give their own name
        ("node1", ["203.0.113.7"], "0.0.0.0"),  # not this machine's: behind address translation
    ],
)
def test_the_coordinator_listens_at_the_address_that_is_named(
    joined, monkeypatch, capsys, host, addresses, listens
):
    resolved(monkeypatch, *addresses)
    port = free_port()
    processes.start(f"{host}:{port}", 2, 0, 60)
    processes.start(f"{host}:{port}", 2, 1, 60)
    assert [call[-1] for call in joined] == [f"{listens}:{port}", None], "only the first listens"
    assert capsys.readouterr().err.count(f"listening on {listens}:{port}\n") == 1


@pytest.mark.parametrize(("count", "number"), [(0, 0), (-1, 0), (2, 2), (2, -1)])
def test_numbers_of_processes_that_cannot_be_are_named(joined, count, number):
    with pytest.raises(InputError, match=f"--process_id={number} must be .*={count} at least 1"):
        processes.start("localhost:1", count, number, 60)


@pytest.mark.slow
def test_a_process_that_no_other_joins_ends_with_an_error():
    """The first one, which waits for the other, and the second one, which finds no first."""
    running = []
    for process in (0, 1):
        with socket.socket() as s:
            s.bind(("", 0))
            port = s.getsockname()[1]
        code = (
            "from t6jax.parallel import processes as p; p.LONGEST_JOINING = 2; "
            f"p.start('localhost:{port}', 2, {process}, 60)"
        )
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started = subprocess.Popen([sys.executable, "-c", code], **process_options(), **pipes)
        running.append((started, f"joining 2 processes at localhost:{port} as number {process}"))
    for started, joining in running:
        said = started.communicate(timeout=60)[1].splitlines()
        assert started.returncode == 1 and said[0] == joining
        first = joining.endswith("number 0")
        assert not first or said.pop(1).startswith("listening on 127.0.0.1:")
        assert said[-1].startswith(
            "error: this process cannot join the others (2 processes at localhost:"
        )
        assert "did not all join within 2 seconds" in said[-1] and len(said) == 2


@pytest.mark.parametrize("error", [RuntimeError, ValueError, OSError])
def test_all_causes_of_a_failure_to_join_are_reported(monkeypatch, joined, error):
    def fail(*_, **__):
        raise RuntimeError("Retry failed") from error(
            "Pods need a headless service.\nkind: Service\n"
        )

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(
        InputError,
        match=r"(?s)failed, because: Pods need a headless service.*kind: Service.*--coordinator",
    ):
        processes.start(None, None, None, 60)
