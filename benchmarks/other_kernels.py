"""Runs what PyTorch times for benchmarks.decode in processes of its own, where a kernel may fail.

A program of cases, such as benchmarks.peers, reads a JSON list of cases from stdin and prints a
JSON object for each, in their order: the case, and either what was measured or `failed`, a sentence
that says why.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence

from benchmarks.record import Record

LARGEST = 20e9  # bytes of cache that a case may allocate


def run(module: str, folder: str, cases: Sequence[Record], timeout: float = 1800) -> list[Record]:
    """The results of all cases, those that did not run with the reason.

    Args:
        module: A program of cases.
        folder: Its argument, the folder of the kernels.
        cases: The cases, as JSON objects.
        timeout: Seconds that all of them together may take.
    Returns:
        One result a case, in their order. Where the process dies, the case that it was in has
        failed, and a new process takes the rest.
    """
    results: list[Record] = []
    while len(results) < len(cases):
        rest = list(cases[len(results) :])
        command = [sys.executable, "-m", module, folder]
        try:
            done = subprocess.run(
                command, input=json.dumps(rest), capture_output=True, text=True, timeout=timeout
            )
            said, error = done.stdout, done.stderr.strip()
        except subprocess.TimeoutExpired as expired:
            said = (expired.stdout or b"").decode()
            reason = f"not timed: {module} had no more than {timeout:.0f} s"
            results += _answers(said)
            return results + [case | {"failed": reason} for case in cases[len(results) :]]
        answers = _answers(said)
        results += answers
        if len(answers) < len(rest):
            reason = error.splitlines()[-1] if error else f"exit status {done.returncode}"
            results.append(rest[len(answers)] | {"failed": reason[:300]})
    return results


def answer(cases: Sequence[Record], measure: Callable[[Record], Record]) -> None:
    """The other side: measures each case and prints what was found.

    An error of CUDA's leaves the process unusable, so it ends there and its parent starts another.
    """
    for case in cases:
        try:
            if case["cache_bytes"] > LARGEST:
                raise ValueError(f"a cache of {case['cache_bytes'] / 1e9:.0f} GB was not allocated")
            found = measure(case)
        except Exception as e:  # whatever another library's kernel says to a shape
            if "CUDA error" in str(e):
                raise
            found = {"failed": f"{type(e).__name__}: {e}".splitlines()[0][:300]}
        print(json.dumps(case | found), flush=True)


def _answers(said: str) -> list[Record]:
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]
