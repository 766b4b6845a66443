"""What train.py calls."""

import os
import pathlib

from t6jax.errors import InputError
from t6jax.programs.config_file import (
    Overrides,
    check_overrides,
    load_config,
    require_config_file,
)


def train_program(
    config_file: str,
    overrides: Overrides,
    workdir: str | None,
    dry_run: bool,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    dead_after: int = 60,
) -> int:
    """Trains, or prints what a run would be.

    Args:
        config_file: a file with get_config(), FILE or FILE:TEXT.
        workdir: the run's directory; None: runs/<name of the config file>.
        coordinator, num_processes, process_id, dead_after: see t6jax.parallel.processes.start.

    Returns:
        The exit code: 128 + the signal that ended training, so that what follows `train.py &&`
        does not run.
    """
    # what can be checked without JAX, which takes seconds to import
    name = pathlib.Path(require_config_file(config_file)).stem
    check_overrides(overrides)
    if workdir is not None and pathlib.Path(workdir).is_file():
        raise InputError(f"--workdir={workdir} is a file: name a folder")
    config = load_config(config_file, overrides)
    if dry_run:
        # as in aot.py, for this process's own look at the GPU
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        from t6jax.training.dry_run import dry_run_report

        for line in dry_run_report(config):
            print(line, flush=True)
        return 0
    # JAX itself takes 75 % of a GPU's memory
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    from t6jax.parallel.processes import start
    from t6jax.training.loop import train

    start(coordinator, num_processes, process_id, dead_after)
    stopped = train(config, workdir or pathlib.Path("runs", name))
    return 128 + stopped if stopped else 0
