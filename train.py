"""Pretraining. usage: python train.py --config=configs/FILE.py [--workdir=DIR] [--config.KEY=VALUE ...] [--dry_run]"""

from absl import flags
from ml_collections import config_flags

from t6jax.programs.command_line import run

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory; default runs/<name of the config file>.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what the run is and needs, and stop.")
flags.mark_flag_as_required("config")


def main(argv):
    from t6jax.programs.training import train_program

    return train_program(CONFIG.value, config_flags.get_config_filename(flags.FLAGS["config"]), WORKDIR.value, DRY_RUN.value)


if __name__ == "__main__":
    run(main)
