"""t6jax.decode over a mesh of four devices, in one process of its own: see
decode_on_four_devices.py for what is promised.
"""

import subprocess
import sys

import pytest

from tests.conftest import process_options


@pytest.mark.slow
def test_each_device_decodes_its_own_part():
    options = process_options()
    # and unoptimized, as all tests on CPUs
    options["env"] |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    alone = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*alone, "tests/ops/decode/decode_on_four_devices.py"],
        **options,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:]
