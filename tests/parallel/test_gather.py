"""Gathered parameters are those of one device, and their gradients' sums; on 8 devices."""

import json
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, process_options

SCRIPT = ROOT / "tests" / "parallel" / "gather_on_eight_devices.py"
NAMES = re.findall(r"^def case_(\w+)", SCRIPT.read_text(), flags=re.M)


@pytest.fixture(scope="module")
def failures() -> dict[str, str | None]:
    options = process_options()
    options["env"] |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], **options, check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_on_eight_devices(failures, name):
    assert failures[name] is None, failures[name]
