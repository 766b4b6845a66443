"""Several processes that train together: how they start, what only the first one does, and what
they decide alike.
"""

import atexit
import contextlib
import faulthandler
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

# how long processes wait for the first one, which may have a corpus to prepare
LONGEST_PREPARATION = 7 * 24 * 3600
# how long a process waits for the others to come, in seconds
LONGEST_JOINING = 300
GO_ON = "the same command on all goes on from the newest checkpoint"
# waits to say the last words of this process, where it is one of several
_waiting: subprocess.Popen | None = None


def start(
    coordinator: str | None, processes: int | None, process: int | None, dead_after: int
) -> None:
    """Joins the other processes of a run, where there are any: those named here, or those of Slurm,
    Open MPI or Kubernetes.

    coordinator: HOST:PORT of the first process. dead_after: seconds without a sign of life until a
    process counts as dead, which ends all others. To be called before anything that needs a device.
    Raises InputError where it cannot be; where others do not come within LONGEST_JOINING seconds,
    which XLA has no exception for, ends this process with that error's sentence.
    """
    explicit = [x for x in (coordinator, processes, process) if x is not None]
    launched = _launched_together()
    if not explicit and not launched:
        return
    if 0 < len(explicit) < 3:
        raise InputError(
            "give --coordinator, --num_processes and --process_id together, or none where a "
            "launcher sets them"
        )
    if coordinator is not None:
        _check_address(coordinator, here=process == 0)
    if jax.config.jax_platforms == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    others = f"{processes} processes at {coordinator} as number {process}" if explicit else launched
    print(f"joining {others}", file=sys.stderr, flush=True)
    with _joined_in_time(others):
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                initialization_timeout=LONGEST_JOINING + 60,  # behind our own
                heartbeat_timeout_seconds=dead_after,
                shutdown_timeout_seconds=dead_after,
            )
        except Exception as e:  # whatever a launcher's own client raises
            raise InputError(
                f"this process cannot join the others: {_with_causes(e)}\n"
                "Where no launcher tells them of one another, give --coordinator=HOST:PORT, "
                "--num_processes and --process_id."
            ) from e
    _prepare_last_words()


def _check_address(coordinator: str, *, here: bool) -> None:
    """Raises InputError for what is no HOST:PORT, and where it is to be `here`, for a port that is
    in use.
    """
    found = re.fullmatch(r".+:(\d{1,5})", coordinator)
    if not found or not 1 <= int(found[1]) <= 65535:
        raise InputError(
            f"--coordinator={coordinator!r} must be HOST:PORT of the first process, as node1:12345"
        )
    if here:  # else XLA crashes
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("", int(found[1])))
            except OSError as e:
                raise InputError(
                    f"--coordinator={coordinator}: this process cannot listen on port {found[1]} "
                    f"({e.strerror}): give another "
                    "port to all"
                ) from e


@contextlib.contextmanager
def _joined_in_time(others: str) -> Iterator[None]:
    """Ends this process with a sentence where what is inside takes more than LONGEST_JOINING
    seconds.
    """

    def end() -> None:
        print(
            f"error: this process cannot join the others ({others}): they did not all come within "
            f"{LONGEST_JOINING} seconds; see "
            "that each of them runs and reaches the first one, and that all were given the same "
            "address and number of processes",
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


def _prepare_last_words() -> None:
    """Has a sentence said behind XLA's report, where XLA ends this process.

    It does so in C++ where another has gone, with no chance for Python to say anything. A shell
    does: it waits for a line, which every other end sends, or for this process to be gone.
    """
    global _waiting
    sentence = (
        "error: this process was ended by what is said above, or by a signal; where another "
        "process of this run has gone, XLA "
        f"ends those that are left; {GO_ON}"
    )
    command = ["sh", "-c", 'read -r line || echo "$0" >&2', sentence]
    # in a session of its own: a Ctrl-C in the terminal is not for it
    _waiting = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    atexit.register(_no_last_words)
    faulthandler.enable(all_threads=False)  # of the report, Python's part: not every thread's


def _no_last_words() -> None:
    if _waiting:
        _waiting.communicate(b"\n")


def _with_causes(error: BaseException) -> str:
    """What an error says, and those that it was raised from."""
    said = []
    cause: BaseException | None = error
    while cause is not None:
        said.append(str(cause).strip() or type(cause).__name__)
        cause = cause.__cause__
    return ", because: ".join(said)


def _launched_together() -> str:
    """What a launcher that JAX knows says of the processes that it started, this one among them; ""
    where there is none.
    """
    number = lambda name: int(os.environ.get(name, 1))
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
    """Whether this is the process that writes, prepares and speaks."""
    return jax.process_index() == 0


def on_first_process(name: str, action: Callable[[], None]) -> None:
    """The first process does it, while the others wait; where it raises an InputError, all end."""
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
        raise failed or InputError(
            "the first process of the run ended: what it says is to be put right"
        )


def wait(name: str) -> None:
    """Until all processes are here. Each name is for one use."""
    if jax.process_count() > 1:
        ocp.multihost.get_barrier_sync_fn()(
            key=f"t6jax {name}", timeout_ms=LONGEST_PREPARATION * 1000
        )


def all_succeed[T](attempt: Callable[[], T]) -> T:
    """attempt() on every process; raises on all where it raises on one."""
    if jax.process_count() == 1:
        return attempt()
    results, error = [], None
    try:
        results.append(attempt())
    except Exception as e:  # whatever it is, the others have to know
        error = e
    if multihost_utils.process_allgather(np.array(error is not None)).any():
        raise error or RuntimeError("another process could not read its part")
    return results[0]


def data_part(sharding: NamedSharding, shape: tuple[int, ...]) -> tuple[int, int]:
    """(which, of how many) parts of a batch's rows this process has on its devices; processes may
    have the same part.

    Raises InputError where the mesh gives processes parts that overlap and are not the same.
    """
    rows: dict[int, set[tuple[int, int]]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        rows.setdefault(device.process_index, set()).add(index[0].indices(shape[0])[:2])
    distinct = sorted({tuple(sorted(blocks)) for blocks in rows.values()})
    size = lambda blocks: sum(stop - start for start, stop in blocks)
    if sum(map(size, distinct)) != shape[0] or len(set(map(size, distinct))) > 1:
        raise InputError(
            "mesh.data x mesh.fsdp must be a multiple of the number of processes, or divide it"
        )
    return distinct.index(tuple(sorted(rows[jax.process_index()]))), len(distinct)


class Stop:
    """Whether a signal asks the run to stop: at once in one process; in several, at a step that all
    learn of alike.

    caught: the signals that this process received, a list that grows.
    """

    def __init__(self, mesh: Mesh, caught: Sequence[signal.Signals]):
        self._caught, self._agreed = caught, None
        self._several = jax.process_count() > 1
        self._flags = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._highest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def ask(self) -> jax.Array | None:
        """Asks all processes, beside a step; the answer is read when that step's metrics are."""
        if not self._several:
            return None
        own = np.full(jax.local_device_count(), self._caught[0] if self._caught else 0, np.int32)
        return self._highest(jax.make_array_from_process_local_data(self._flags, own))

    def read(self, answer: jax.Array | None) -> None:
        """Takes note of an answer."""
        if answer is not None and (number := int(answer)):
            self._agreed = signal.Signals(number)

    @property
    def by(self) -> signal.Signals | None:
        """The signal to stop at."""
        if self._several:
            return self._agreed
        return self._caught[0] if self._caught else None

    @property
    def at_once(self) -> Sequence[signal.Signals]:
        """What cuts a validation short; nothing in several processes, which have to go through it
        together.
        """
        return () if self._several else self._caught


@contextlib.contextmanager
def exit_if_peers_lost() -> Iterator[None]:
    """Ends this process with a sentence where a collective fails because another process has gone.

    Without waiting for anything that it was to do with the others.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(e):
            raise
        reason = str(e).strip().splitlines()[0].split(". ")[0][:200]
        print(
            f"error: another process of this run has gone ({reason}); {GO_ON}",
            file=sys.stderr,
            flush=True,
        )
        _no_last_words()
        os._exit(1)
