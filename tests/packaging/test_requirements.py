"""The tested set lies in the ranges that pyproject.toml accepts, and its tables are readable."""

import tomllib

from lm_eval.utils import make_table
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = [
        line.partition("#")[0].strip()
        for path in ROOT.glob("requirements*.txt")
        for line in path.read_text().splitlines()
    ]
    found = [Requirement(line) for line in lines if line]
    assert all(len(r.specifier) == 1 and str(r.specifier).startswith("==") for r in found)
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in found}


def test_everything_that_is_asked_for_is_pinned_in_the_tested_set():
    tested = pins()
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    asked = [Requirement(text) for group in groups for text in group]
    for r in asked:
        if r.name == PROJECT["name"]:  # an extra that includes another
            assert r.extras <= PROJECT["optional-dependencies"].keys()
            continue
        assert canonicalize_name(r.name) in tested, r
        assert r.specifier.contains(tested[canonicalize_name(r.name)]), r


def test_lm_evals_table_is_headed_by_its_columns():
    scores = {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.1}
    results = {
        "results": {"arc": scores},
        "versions": {"arc": 1},
        "n-shot": {"arc": 0},
        "higher_is_better": {"arc": {"acc": True}},
    }
    header = make_table(results).splitlines()[0]
    names = [cell.strip() for cell in header.strip("|").split("|")]
    assert names[:4] == ["Tasks", "Version", "Filter", "n-shot"]
