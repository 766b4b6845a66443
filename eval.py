"""How good a checkpoint is.

usage: python eval.py --ckpt=DIR [--data=FOLDER] [--batches=N]
           validation loss, perplexity, bits a byte
       python eval.py --ckpt=DIR --bpb=TEXTS
           bits a byte of any text, by sliding windows
       python eval.py --ckpt=DIR [--ckpt=DIR ...] --tasks=paper
           the paper's benchmarks, by lm-evaluation-harness
"""

from absl import flags

from t6jax.programs.flags import run

CKPT = flags.DEFINE_multi_string(
    "ckpt",
    None,
    "(required) A run's directory, or one step's: RUN/checkpoints/STEP; with --tasks, "
    "several of them, a row each.",
    required=True,
)
DATA = flags.DEFINE_string(
    "data", None, "Token shards, or a text file or folder; default the run's own validation data."
)
BATCHES = flags.DEFINE_integer(
    "batches", None, "Batches to take, drawn evenly; default all of the validation data.", 1
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Sequences a batch.", 1)
BPB = flags.DEFINE_string(
    "bpb", None, "A text file, or a folder of them: bits a byte of all of it."
)
TEXT_KEY = flags.DEFINE_string(
    "text_key",
    None,
    "With --data or --bpb of JSONL or Parquet: the key or column of the text; default the run's.",
)
STRIDE = flags.DEFINE_integer(
    "stride", None, "Tokens that a window of --bpb moves by; default half of the model's window.", 1
)
TASKS = flags.DEFINE_list(
    "tasks", None, "Tasks of lm-evaluation-harness; paper: those of the paper's tables."
)
PAPER_ROW = flags.DEFINE_string(
    "paper_row", None, "A row of the paper to print beneath, by its config's name: medium/tpa."
)
# with --tasks, by the harness's own names
NUM_FEWSHOT = flags.DEFINE_integer(
    "num_fewshot", None, "Examples before each question; default the task's own number.", 0
)
LIMIT = flags.DEFINE_float(
    "limit",
    None,
    "Questions of each task to take, or, below 1, the part of them: to try things out.",
    0,
)
INCLUDE_PATH = flags.DEFINE_string(
    "include_path",
    None,
    "A folder with YAML tasks of your own. They run code (!function): take none from strangers.",
)
OUTPUT_PATH = flags.DEFINE_string(
    "output_path", None, "Where the results go; default the run's directory, evaluation/."
)
LOG_SAMPLES = flags.DEFINE_bool(
    "log_samples", False, "Write every question and answer next to the results."
)
USE_CACHE = flags.DEFINE_bool(
    "use_cache",
    False,
    "Keep the model's answers, and take those that are kept; in your cache folder, since they are "
    "pickles, which run code.",
)
CACHE_REQUESTS = flags.DEFINE_bool(
    "cache_requests",
    False,
    "Keep the requests that the tasks are made into, as pickles, in the harness's own folder or "
    "LM_HARNESS_CACHE_PATH.",
)
GEN_KWARGS = flags.DEFINE_string(
    "gen_kwargs", None, "Of generations: temperature=0.8,max_gen_toks=64 and the like."
)
APPLY_CHAT_TEMPLATE = flags.DEFINE_bool(
    "apply_chat_template", False, "Refused: these are no chat models."
)


def main(argv):
    from t6jax.errors import InputError
    from t6jax.runs import locate, require_path

    # what can be checked without JAX, which takes seconds to import
    for ckpt in CKPT.value:
        locate(ckpt)
    require_path("--data", DATA.value)
    require_path("--bpb", BPB.value)
    if len(CKPT.value) > 1 and not TASKS.value:
        raise InputError("--ckpt: several checkpoints go with --tasks; give one")
    if TASKS.value:
        from t6jax.programs.tasks import Options, tasks_program

        options = Options(
            tasks=TASKS.value,
            num_fewshot=NUM_FEWSHOT.value,
            limit=LIMIT.value,
            include_path=INCLUDE_PATH.value,
            output_path=OUTPUT_PATH.value,
            log_samples=LOG_SAMPLES.value,
            use_cache=USE_CACHE.value,
            cache_requests=CACHE_REQUESTS.value,
            gen_kwargs=GEN_KWARGS.value,
            apply_chat_template=APPLY_CHAT_TEMPLATE.value,
        )
        return tasks_program(CKPT.value, PAPER_ROW.value, options)

    from t6jax.programs.evaluation import bpb_program, eval_program

    if BPB.value:
        return bpb_program(CKPT.value[0], BPB.value, STRIDE.value, TEXT_KEY.value)
    return eval_program(CKPT.value[0], DATA.value, BATCH_SIZE.value, BATCHES.value, TEXT_KEY.value)


if __name__ == "__main__":
    run(main)
