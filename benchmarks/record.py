"""How every benchmark records what it measured: the results, and where, when and with what."""

import argparse
import datetime
import importlib.metadata
import json
import pathlib
import shlex
import subprocess
import sys
from typing import Any

import jax

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

Record = dict[str, Any]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A benchmark's argument parser: its module's docstring, `--out` and `--commit`."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--out", type=pathlib.Path, default=RESULTS, metavar="DIR", help="where the record goes"
    )
    made.add_argument(
        "--commit", default=commit(), help="the commit that is timed (default: git's HEAD)"
    )
    return made


def provenance(module: str, device: str, commit: str | None) -> Record:
    """Device, versions, date, commit and command of this run of a benchmark."""
    return {
        "device": device,
        "driver": nvidia_smi("driver_version"),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "command": shlex.join(["python", "-m", module, *_measured(sys.argv[1:])]),
    }


def write(folder: pathlib.Path, benchmark: str, record: Record) -> pathlib.Path:
    """Writes `<benchmark>_<device>.json` into a folder.

    Returns:
        The file's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{benchmark}_{record['device'].replace(' ', '_').lower()}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def read(path: pathlib.Path | str) -> Record:
    """A record by its path; a bare file name is one of benchmarks/results."""
    path = pathlib.Path(path)
    return json.loads((RESULTS / path if path.name == str(path) else path).read_text())


def commit(folder: pathlib.Path = ROOT) -> str | None:
    """The commit that a folder has checked out, or None where it is not a git checkout."""
    return _first_line(["git", "-C", str(folder), "rev-parse", "HEAD"])


def nvidia_smi(field: str) -> str | None:
    """What nvidia-smi says of the first GPU, or None on a machine without one."""
    return _first_line(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"])


def _first_line(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _measured(arguments: list[str]) -> list[str]:
    """The arguments that say what is measured: all but --out and --commit."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith(("--out", "--commit")):
            kept.append(argument)
        skip = argument in ("--out", "--commit")
    return kept
