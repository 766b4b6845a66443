"""What generate.py calls. The checkpoint's path is checked before this module is imported."""

import sys

from t6jax.data.corpus import run_tokenizer
from t6jax.errors import InputError
from t6jax.generation import Detokenizer, encode, stream
from t6jax.loading import load
from t6jax.runs import locate, read_data_config


def generate_program(ckpt: str, prompt: str | None, max_new_tokens: int, **sampling) -> int:
    """Prints the prompt and, as it is generated, its continuation.

    Args:
        ckpt: a run's directory, or one step's.
        prompt: the text to continue; None: standard input.
        max_new_tokens: at most so many, and as the model's context_length allows.
        sampling: temperature, top_k, top_p and seed; see t6jax.stream.

    Returns:
        The exit code.
    """
    workdir, _ = locate(ckpt)
    tokenizer = run_tokenizer(workdir, read_data_config(workdir))
    if prompt is None:
        prompt = str(sys.stdin.buffer.read(), "utf-8", "replace")
    model, config = load(ckpt)
    tokens = encode(tokenizer, prompt)
    if len(tokens) >= config.context_length:
        raise InputError(
            f"the prompt has {len(tokens)} tokens, which leaves no room in the model's "
            f"context_length={config.context_length}: shorten it"
        )
    room = config.context_length - len(tokens)
    if max_new_tokens > room:
        print(
            f"at most {room} tokens: the model's context_length is {config.context_length}",
            file=sys.stderr,
        )
        max_new_tokens = room
    text = Detokenizer(tokenizer, tokens)
    print(prompt, end="", flush=True)
    options = sampling | {
        "stop_tokens": (tokenizer.document_start,),
        "vocab_size": tokenizer.vocab_size,
    }
    for (new,) in stream(model, [tokens], max_new_tokens, **options):
        print(text.push(new), end="", flush=True)
    print(text.finish())
    return 0
