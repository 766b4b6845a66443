"""The table of faults stays true to the code: a fault that cannot be applied tests no test."""

import ast
import pathlib

import pytest

from tests.conftest import ROOT
from tests.mutants.table import ROOMS, Mutant, mutants

ALL = mutants()


@pytest.mark.parametrize("room", ROOMS)
def test_every_fault_applies_and_is_python(room):
    for mutant in mutants(room):
        ast.parse(mutant.applied(ROOT))  # raises if the old text does not stand exactly once
        assert mutant.old != mutant.new, mutant


def test_every_fault_names_tests_that_there_are():
    for mutant in ALL:
        assert mutant.tests, mutant
        for test in mutant.tests:
            file, *names = test.partition("[")[0].split("::")
            source = (ROOT / file).read_text() if names else ""
            assert (ROOT / file).exists(), mutant
            for name in names:  # a class, which may inherit the test that follows
                inherited = name != names[0] and f"def {name}(" not in source
                assert inherited or f"def {name}(" in source or f"class {name}(" in source, mutant


def test_the_table_is_as_large_as_promised_and_tells_no_fault_twice():
    assert len(ALL) >= 150
    assert len({(m.file, m.old, m.new) for m in ALL}) == len(ALL)


def test_a_fault_whose_text_has_gone_is_refused(tmp_path: pathlib.Path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    with pytest.raises(ValueError, match="stands 2 times"):
        Mutant("ops", "a.py", "x = 1", "x = 2", ()).applied(tmp_path)
