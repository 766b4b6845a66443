"""What train.py calls."""

import os
import pathlib

from t6jax.config import RunConfig
from t6jax.errors import InputError
from t6jax.extras import needs
from t6jax.parallel.processes import start
from t6jax.training.dry_run import dry_run_report
from t6jax.training.loop import train

with needs("train"):
    from ml_collections import ConfigDict


def train_program(
    config: ConfigDict,
    config_file: str,
    workdir: str | None,
    dry_run: bool,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    dead_after: int = 60,
) -> int:
    """Trains, or prints what a run would be; the last four as t6jax.parallel.processes.start takes
    them.
    """
    try:
        run = RunConfig.from_dict(config.to_dict())
    except (
        OSError
    ) as e:  # ml_collections holds back the error of a missing file until the config is used
        raise InputError(f"--config={config_file}: there is no such config file") from e
    if dry_run:
        # as in aot.py, for this process's own look at the GPU
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        print(dry_run_report(run))
        return 0
    # of a GPU's memory, JAX by itself takes 75 %
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    start(coordinator, num_processes, process_id, dead_after)
    workdir = workdir or pathlib.Path("runs", pathlib.Path(config_file.split(":")[0]).stem)
    stopped = train(run, workdir)
    return (
        128 + stopped if stopped else 0
    )  # as the shell has it, so that what follows `train.py &&` does not run
