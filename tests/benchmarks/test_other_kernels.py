"""Cases that run in processes of their own, where a kernel may fail."""

import pytest

from benchmarks import other_kernels

PROGRAM = """
import json, os, sys, time
from benchmarks.other_kernels import answer

def measure(case):
    if case["do"] == "die":
        print("segfault at work", file=sys.stderr, flush=True)
        os._exit(139)
    if case["do"] == "cuda":
        raise RuntimeError("CUDA error: an illegal memory access")
    if case["do"] == "hang":
        time.sleep(600)
    if case["do"] == "raise":
        raise NotImplementedError("not this shape")
    return {"microseconds": 1.0}

answer(json.load(sys.stdin), measure)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "program_of_cases.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{other_kernels.__file__.rsplit('/', 2)[0]}")

    def run(*what, **options):
        cases = [{"do": w, "cache_bytes": 1e12 if w == "large" else 1} for w in what]
        found = other_kernels.run("program_of_cases", "DIR", cases, **options)
        assert [r["do"] for r in found] == list(what)
        return [r.get("failed", "ran") for r in found]

    return run


def test_a_case_that_fails_says_why_and_the_others_run(run):
    assert run("go", "raise", "die", "cuda", "large", "go") == [
        "ran",
        "NotImplementedError: not this shape",
        "segfault at work",
        "RuntimeError: CUDA error: an illegal memory access",
        "ValueError: a cache of 1000 GB was not allocated",
        "ran",
    ]


def test_what_does_not_fit_the_time_is_recorded_as_not_timed(run):
    ran, hung, after = run("go", "hang", "go", timeout=20)
    assert ran == "ran" and hung == after
    assert hung == "not timed: program_of_cases had no more than 20 s"
