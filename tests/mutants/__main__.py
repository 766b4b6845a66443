"""Puts each fault of the table into a copy of the tree, runs the tests that ought to notice, and
prints the faults that none noticed.

usage: python -m tests.mutants [--room=ROOM] [--jobs=N] [--seconds=N] [--only=TEXT]

Tests run in forks of this process, which has imported the libraries and none of the project.
"""

import argparse
import contextlib
import importlib
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

from tests.mutants.table import ROOMS, Mutant, mutants

ROOT = pathlib.Path(__file__).parent.parent.parent
# what is large or made anew, and what no test of the table reads
LEFT_OUT = (".git", ".venv*", "runs", "build", "__pycache__", ".*_cache", ".hypothesis")
PYTEST = ("-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:faulthandler")
LIBRARIES = ("jax", "flax.nnx", "optax", "orbax.checkpoint", "jaxtyping", "pytest", "hypothesis")


class Result(NamedTuple):
    """verdict: pass, fail, slow, or broken: no test ran. output: the end of what pytest printed."""

    verdict: str
    seconds: float
    output: str


def in_child(copy: pathlib.Path, tests: tuple[str, ...], output: pathlib.Path) -> None:
    """Runs tests of a copy, and ends the process with pytest's status."""
    status = 70
    try:
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(copy)
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        outside = [p for p in sys.path if p and pathlib.Path(p).resolve() != ROOT]
        sys.path[:] = [str(copy), *outside]
        import pytest

        status = int(pytest.main([*PYTEST, *tests]))
    finally:
        sys.stdout.flush()
        os._exit(status)


def results(
    work: list[tuple[tuple[str, ...], Mutant | None]], copies: list[pathlib.Path], seconds: float
) -> Iterator[tuple[tuple[str, ...], Mutant | None, Result]]:
    """What the tests of each piece of work say, as they end; one runs in each copy at a time."""
    waiting, free = list(work), list(copies)
    running: dict[int, tuple] = {}  # process -> what it runs, its copy, and since when
    while waiting or running:
        if waiting and free:
            (tests, mutant), copy = waiting.pop(0), free.pop()
            if mutant is not None:
                (copy / mutant.file).write_text(mutant.applied(ROOT))
            sys.stdout.flush()
            if not (child := os.fork()):
                in_child(copy, tests, copy.with_suffix(".output"))
            running[child] = tests, mutant, copy, time.monotonic()
            continue
        time.sleep(0.05)
        for child, (tests, mutant, copy, started) in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            verdict, taken = "slow", time.monotonic() - started
            if ended:
                # 1: tests failed; others say that none ran, as when a module cannot be imported
                verdict = {0: "pass", 1: "fail"}.get(os.waitstatus_to_exitcode(status), "broken")
            elif taken < seconds:
                continue
            else:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            del running[child]
            free.append(copy)
            if mutant is not None:
                shutil.copy(ROOT / mutant.file, copy / mutant.file)
            said = copy.with_suffix(".output").read_text(errors="replace").strip().splitlines()
            yield tests, mutant, Result(verdict, taken, "\n".join(said[-15:]))


def copied(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
    """Copies of the tree."""
    made = [folder / str(i) for i in range(count)]
    for copy in made:
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    return made


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__)
    parser.add_argument("--room", choices=ROOMS, help="the room whose faults are tried; all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="tests at a time")
    parser.add_argument("--seconds", type=float, default=300, help="the most that tests may take")
    parser.add_argument("--only", default="", help="only faults whose description has this text")
    args = parser.parse_args(arguments)
    wanted = [m for m in mutants(args.room) if args.only in str(m)]
    if not wanted:
        print("no fault of the table is meant")
        return 1
    found: dict[str, list[Mutant]] = {"pass": [], "fail": [], "slow": [], "broken": []}
    with tempfile.TemporaryDirectory(prefix="t6jax-mutants-") as scratch:
        folder = pathlib.Path(scratch)
        os.environ |= {
            "JAX_PLATFORMS": "cpu",
            "PYTHONDONTWRITEBYTECODE": "1",
            # what a fault leaves as it was is compiled once for all of them
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        sys.dont_write_bytecode = True
        for library in LIBRARIES:
            with contextlib.suppress(ImportError):
                importlib.import_module(library)
        copies = copied(folder, args.jobs)
        # what fails without a fault notices nothing; and it fills the cache of compiled programs
        plain = [(tests, None) for tests in dict.fromkeys(m.tests for m in wanted)]
        for tests, _, result in results(plain, copies, args.seconds):
            if result.verdict != "pass":
                print(f"without a fault, {' '.join(tests)}: {result.verdict}\n{result.output}")
                return 1
            print(f"no fault     {result.seconds:4.0f} s  {' '.join(tests)}", flush=True)
        for _, mutant, result in results([(m.tests, m) for m in wanted], copies, args.seconds):
            assert mutant is not None
            found[result.verdict].append(mutant)
            noticed = {"pass": "NOT NOTICED", "broken": "BROKEN"}.get(result.verdict, "noticed")
            print(f"{noticed:<12} {result.seconds:4.0f} s  {mutant}", flush=True)
            if result.verdict == "broken":
                print(result.output, flush=True)
    for verdict, says in (("pass", "not noticed"), ("broken", "no fault: its tests do not run")):
        for mutant in found[verdict]:
            print(f"\n{says}, by {' '.join(mutant.tests)}:\n  {mutant}")
    noticed = len(found["fail"]) + len(found["slow"])
    print(f"\n{noticed} of {len(wanted)} faults noticed, {100 * noticed / len(wanted):.1f} %")
    return int(noticed < len(wanted))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
