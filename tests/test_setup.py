"""scripts/setup.sh says in one sentence what a machine lacks."""

import os
import subprocess

from tests.conftest import ROOT


def test_an_older_python_is_told_so_in_one_sentence(tmp_path):
    for name in ("python3.12", "python3", "python3.13", "python", "python3.14"):
        fake = tmp_path / name
        fake.write_text(
            '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n'
        )
        fake.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    run = ["bash", "scripts/setup.sh", str(tmp_path / "venv")]
    done = subprocess.run(
        run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "t6jax needs Python 3.12 or newer, and none is on the PATH (python3 is Python 3.9.2).\n"
    )
    assert not (tmp_path / "venv").exists()
