"""Pretraining.

usage: python train.py --config=configs/FILE.py [--workdir=DIR] [--config.KEY=VALUE ...] [--dry_run]
"""

from absl import flags

from t6jax.programs.flags import run

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "(required) The experiment: a Python file with get_config(), as those of configs/.",
    required=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's directory; default runs/<name of the config file>."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what the run is and needs, and stop.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first process of several, if no launcher sets it."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes train together, if no launcher sets it."
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0, if no launcher sets it."
)
DEAD_AFTER = flags.DEFINE_integer(
    "dead_after", 60, "Seconds without a sign of a process until the others end.", lower_bound=1
)


def main(argv, overrides):
    from t6jax.programs.training import train_program

    return train_program(
        CONFIG.value,
        overrides,
        WORKDIR.value,
        DRY_RUN.value,
        COORDINATOR.value,
        NUM_PROCESSES.value,
        PROCESS_ID.value,
        DEAD_AFTER.value,
    )


if __name__ == "__main__":
    run(main, overrides=True)
