"""Several processes that train together: how they start, what only the first one does, and how they
stop and fail together.
"""

import atexit
import contextlib
import faulthandler
import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t6jax.errors import InputError

# seconds that processes wait for the first one, which may have a corpus to prepare
LONGEST_PREPARATION = 7 * 24 * 3600
# seconds that a process waits for the others to join
LONGEST_JOINING = 300
RESUME = "run the same command on all of them to resume from the newest checkpoint"
# the shell that reports the end of this process if XLA ends it
_reporter: subprocess.Popen | None = None


def start(
    coordinator: str | None, processes: int | None, process: int | None, dead_after: int
) -> None:
    """Joins the other processes of a run, if there are any.

    They are those that the arguments name, or those of Slurm, Open MPI or Kubernetes. Call this
    before anything that needs a device. If the others do not join within LONGEST_JOINING seconds,
    for which XLA raises no exception, this process ends with an error message.

    Args:
        coordinator: HOST:PORT of the first process.
        processes: their number.
        process: the number of this one, from 0.
        dead_after: seconds without a heartbeat after which a process counts as dead, which ends all
            others.

    Raises:
        InputError: the arguments are wrong, or this process cannot join the others.
    """
    explicit = [x for x in (coordinator, processes, process) if x is not None]
    launched = _launched_together()
    if not explicit and not launched:
        return
    if 0 < len(explicit) < 3:
        raise InputError(
            "give --coordinator, --num_processes and --process_id together, or none of them if a "
            "launcher starts the processes"
        )
    listens = None
    if coordinator is not None and processes is not None and process is not None:
        if processes < 1 or not 0 <= process < processes:
            raise InputError(
                f"--process_id={process} must be from 0 to --num_processes - 1, and "
                f"--num_processes={processes} at least 1"
            )
        listens = _check_address(coordinator, here=process == 0)
    if jax.config.jax_platforms == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    others = f"{processes} processes at {coordinator} as number {process}" if explicit else launched
    print(f"joining {others}", file=sys.stderr, flush=True)
    if listens:
        print(f"listening on {listens}", file=sys.stderr, flush=True)
    with _joined_in_time(others):
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                coordinator_bind_address=listens,
                initialization_timeout=LONGEST_JOINING + 60,  # after our own timeout
                heartbeat_timeout_seconds=dead_after,
                shutdown_timeout_seconds=dead_after,
            )
        except Exception as e:  # whatever a launcher's own client raises
            raise InputError(
                f"this process cannot join the others: {_with_causes(e)}\n"
                "Unless a launcher starts the processes, give --coordinator=HOST:PORT, "
                "--num_processes and --process_id."
            ) from e
    _prepare_report()


def _check_address(coordinator: str, *, here: bool) -> str | None:
    """Where the coordinator listens, if it is `here`: at the address that HOST names, or on all
    interfaces where HOST names none of this machine that others reach.

    Raises:
        InputError: coordinator is not HOST:PORT, or it is `here` and its port is in use.
    """
    found = re.fullmatch(r"(.+):(\d{1,5})", coordinator)
    if not found or not 1 <= int(found[2]) <= 65535:
        raise InputError(
            f"--coordinator={coordinator!r} must be HOST:PORT of the first process, as node1:12345"
        )
    if not here:
        return None
    host, port = found[1], int(found[2])
    address = _own_address(host.strip("[]"))
    family = socket.AF_INET6 if address and ":" in address else socket.AF_INET
    with socket.socket(family) as s:  # else XLA crashes
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((address or "", port))
        except OSError as e:
            raise InputError(
                f"--coordinator={coordinator}: this process cannot listen on port {port} "
                f"({e.strerror}): give all processes another port"
            ) from e
    if address is None:
        return f"0.0.0.0:{port}"
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _own_address(host: str) -> str | None:
    """The address of this machine that a name stands for; None if there is none, as behind address
    translation, or if it is the loopback that many systems give their own name, which others do
    not reach.
    """
    try:
        found = [info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return None
    for address in map(str, found):
        loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
        if loopback and host != "localhost" and host != address:
            continue
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family) as s:
            s.bind((address, 0))
            return address
    return None


@contextlib.contextmanager
def _joined_in_time(others: str) -> Iterator[None]:
    """Ends this process with an error if the body takes more than LONGEST_JOINING seconds."""

    def end() -> None:
        print(
            f"error: this process cannot join the others ({others}): they did not all join within "
            f"{LONGEST_JOINING} seconds; check that each of them runs and reaches the first one, "
            "and that all were given the same address and number of processes",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    timer = threading.Timer(LONGEST_JOINING, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _prepare_report() -> None:
    """Has an error message printed after XLA's report if XLA ends this process.

    XLA does so in C++ when another process has ended, and Python cannot print anything. A shell
    does: it waits for a line, which every other end of this process sends, or for end of file.
    """
    global _reporter
    sentence = (
        "error: this process was ended by the error reported above, or by a signal; when one "
        f"process of a run ends, XLA ends the others; {RESUME}"
    )
    command = ["sh", "-c", 'read -r line || echo "$0" >&2', sentence]
    # in another session, so that a Ctrl-C in the terminal does not end it
    _reporter = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    atexit.register(_cancel_report)
    faulthandler.enable(all_threads=False)  # the traceback of the main thread only


def _cancel_report() -> None:
    if _reporter:
        _reporter.communicate(b"\n")


def _with_causes(error: BaseException) -> str:
    """The message of an error and of those that it was raised from."""
    said = []
    cause: BaseException | None = error
    while cause is not None:
        said.append(str(cause).strip() or type(cause).__name__)
        cause = cause.__cause__
    return ", because: ".join(said)


def _launched_together() -> str:
    """A description of the processes that a launcher known to JAX started with this one; "" if none
    did.
    """

    def number(name: str) -> int:
        return int(os.environ.get(name, 1))

    if (
        "SLURM_PROCID" in os.environ
        and "SLURM_STEP_NODELIST" in os.environ
        and number("SLURM_NTASKS") > 1
    ):
        return f"{number('SLURM_NTASKS')} processes of Slurm as number {os.environ['SLURM_PROCID']}"
    if number("OMPI_COMM_WORLD_SIZE") > 1:
        return (
            f"{number('OMPI_COMM_WORLD_SIZE')} processes of Open MPI as number "
            f"{os.environ.get('OMPI_COMM_WORLD_RANK', '?')}"
        )
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        return f"the pods of a Kubernetes job as number {os.environ['JOB_COMPLETION_INDEX']}"
    return ""


def is_first_process() -> bool:
    """Whether this is the process that prepares data, writes files and prints."""
    return jax.process_index() == 0


def own_share() -> tuple[int, int]:
    """(the number of this process, how many there are): of work that is split between them."""
    return jax.process_index(), jax.process_count()


def on_first_process(name: str, action: Callable[[], None]) -> None:
    """Runs action in the first process while the others wait. If it raises an InputError, all
    processes raise one.

    Args:
        name: of the barrier that the others wait at; each name can be used once.
        action: what the first process does.
    """
    if jax.process_count() == 1:
        action()
        return
    failed = None
    if is_first_process():
        try:
            action()
        except InputError as e:
            failed = e
    wait(name)
    if multihost_utils.broadcast_one_to_all(np.array(failed is not None)):
        raise failed or InputError("the first process failed; fix the error that it reports")


def wait(name: str) -> None:
    """Waits until all processes call this with the same name. Each name can be used once."""
    if jax.process_count() > 1:
        ocp.multihost.get_barrier_sync_fn()(
            key=f"t6jax {name}", timeout_ms=LONGEST_PREPARATION * 1000
        )


def all_succeed[T](attempt: Callable[[], T]) -> T:
    """attempt() in every process; if it raises in one, all raise."""
    if jax.process_count() == 1:
        return attempt()
    results, error = [], None
    try:
        results.append(attempt())
    except Exception as e:  # whatever it is, the others have to stop too
        error = e
    if multihost_utils.process_allgather(np.array(error is not None)).any():
        raise error or RuntimeError("another process failed; see the error that it reports")
    return results[0]


def batch_shard(sharding: NamedSharding, shape: tuple[int, ...]) -> tuple[int, int]:
    """Which shard of a batch's rows this process has on its devices; several may have the same.

    Args:
        sharding: of the batch.
        shape: of the batch.

    Returns:
        (the shard's number, the number of shards).

    Raises:
        InputError: the mesh gives two processes shards that overlap and are not equal.
    """
    rows: dict[int, set[tuple[int, int]]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        rows.setdefault(device.process_index, set()).add(index[0].indices(shape[0])[:2])
    distinct = sorted({tuple(sorted(blocks)) for blocks in rows.values()})
    size = lambda blocks: sum(stop - start for start, stop in blocks)
    if sum(map(size, distinct)) != shape[0] or len(set(map(size, distinct))) > 1:
        raise InputError(
            f"mesh.data x mesh.fsdp must be a multiple of the {jax.process_count()} processes, or "
            "divide their number"
        )
    return distinct.index(tuple(sorted(rows[jax.process_index()]))), len(distinct)


class Stop:
    """Whether a signal asks the run to stop. One process stops at once; several agree on the step.

    Args:
        mesh: the devices of all processes.
        caught: the signals that this process has received, a list that grows.
    """

    def __init__(self, mesh: Mesh, caught: Sequence[signal.Signals]):
        self._caught, self._agreed = caught, None
        self._several = jax.process_count() > 1
        self._flags = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._highest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def ask(self) -> jax.Array | None:
        """Asks all processes, at the same time as a step; the answer is read when that step's
        metrics are.
        """
        if not self._several:
            return None
        local = np.full(jax.local_device_count(), self._caught[0] if self._caught else 0, np.int32)
        return self._highest(jax.make_array_from_process_local_data(self._flags, local))

    def read(self, answer: jax.Array | None) -> None:
        """Records an answer."""
        if answer is not None and (number := int(answer)):
            self._agreed = signal.Signals(number)

    @property
    def by(self) -> signal.Signals | None:
        """The signal that asks the run to stop, if any."""
        if self._several:
            return self._agreed
        return self._caught[0] if self._caught else None

    @property
    def at_once(self) -> Sequence[signal.Signals]:
        """The signals that cut a validation short; none with several processes, which have to
        validate together.
        """
        return () if self._several else self._caught


@contextlib.contextmanager
def exit_if_peers_lost() -> Iterator[None]:
    """Ends this process with an error message if a collective fails because another process ended.

    It does not wait for any collective with the others.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(e):
            raise
        reason = str(e).strip().splitlines()[0].split(". ")[0][:200]
        print(
            f"error: another process of this run ended ({reason}); {RESUME}",
            file=sys.stderr,
            flush=True,
        )
        _cancel_report()
        os._exit(1)
