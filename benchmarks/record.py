"""What a recorded number is worth nothing without: where, when and how it was measured."""

import argparse
import datetime
import json
import pathlib
import shlex
import subprocess
import sys

import jax
import jaxlib

RESULTS = pathlib.Path(__file__).parent / "results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--out and --commit."""
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="folder of the record")
    parser.add_argument(
        "--commit",
        default=_commit(),
        help="of the code that is timed, where there is no git to ask",
    )


def provenance(module: str, device: str, commit: str | None) -> dict:
    """Device, versions, date, commit and command of this run of a benchmark."""
    arguments = [a for a in sys.argv[1:] if not a.startswith(("--out", "--commit"))]
    return dict(
        device=device,
        driver=_driver(),
        jax=jax.__version__,
        jaxlib=jaxlib.__version__,
        date=datetime.date.today().isoformat(),
        commit=commit,
        command=shlex.join(["python", "-m", module, *arguments]),
    )


def write(folder: pathlib.Path, benchmark: str, record: dict) -> None:
    """One JSON file a benchmark and device."""
    folder.mkdir(parents=True, exist_ok=True)
    name = record["device"].replace(" ", "_").lower()
    (folder / f"{benchmark}_{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (
        OSError,
        subprocess.CalledProcessError,
        IndexError,
    ):  # a machine without a GPU, where a benchmark is checked
        return None


def _commit() -> str | None:
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
