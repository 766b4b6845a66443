"""Continues a text.

usage: python generate.py --ckpt=DIR [--prompt="..."]
           without --prompt, the text is read from standard input
"""

from absl import flags

from t6jax.programs.flags import run

CKPT = flags.DEFINE_string(
    "ckpt",
    None,
    "(required) A run's directory, or one step's: RUN/checkpoints/STEP.",
    required=True,
)
PROMPT = flags.DEFINE_string("prompt", None, "The text to continue; default standard input.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 100, "Tokens to add at most.", 1)
TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.8, "Of the softmax that tokens are drawn from; 0: the likeliest.", 0.0
)
TOP_K = flags.DEFINE_integer("top_k", 0, "Draw among the k likeliest tokens; 0: all.", 0)
TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Draw among the likeliest tokens that together reach this probability.", 0.0, 1.0
)
SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", 0, 2**32 - 1)


def main(argv):
    from t6jax.runs import locate

    locate(CKPT.value)  # before JAX is imported, which takes seconds
    from t6jax.programs.generation import generate_program

    sampling = {
        "temperature": TEMPERATURE.value,
        "top_k": TOP_K.value,
        "top_p": TOP_P.value,
        "seed": SEED.value,
    }
    return generate_program(CKPT.value, PROMPT.value, MAX_NEW_TOKENS.value, **sampling)


if __name__ == "__main__":
    run(main)
