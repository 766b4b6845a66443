"""Validation loss of a checkpoint. usage: python eval.py --ckpt=DIR [--data=FOLDER] [--batches=N]"""

from absl import flags

from t6jax.programs.command_line import run

CKPT = flags.DEFINE_string("ckpt", None, "A run's directory, or one step's: RUN/checkpoints/STEP.", required=True)
DATA = flags.DEFINE_string("data", None, "Token shards, or a text file or folder; default the run's own validation data.")
BATCHES = flags.DEFINE_integer("batches", None, "Batches to take, drawn evenly; default all of the validation data.", 1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Sequences a batch.", 1)


def main(argv):
    from t6jax.programs.evaluation import eval_program

    return eval_program(CKPT.value, DATA.value, BATCH_SIZE.value, BATCHES.value)


if __name__ == "__main__":
    run(main)
