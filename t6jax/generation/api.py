"""Text or token ids continued by a model: `generate`."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, overload

from t6jax.arguments import shown
from t6jax.data.tokenizers import Tokenizer
from t6jax.errors import InputError
from t6jax.generation.detokenizer import Detokenizer
from t6jax.generation.streaming import stream
from t6jax.model import T6
from t6jax.runs import locate, read_data_config


@overload
def generate(
    model: T6,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    tokenizer: Tokenizer,
    temperature: float = ...,
    top_k: int = ...,
    top_p: float = ...,
    seed: int = ...,
    stop_tokens: Sequence[int] | None = ...,
    vocab_size: int | None = ...,
    max_length: int | None = ...,
) -> list[str]: ...


@overload
def generate(
    model: T6,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    tokenizer: Tokenizer | None = ...,
    temperature: float = ...,
    top_k: int = ...,
    top_p: float = ...,
    seed: int = ...,
    stop_tokens: Sequence[int] | None = ...,
    vocab_size: int | None = ...,
    max_length: int | None = ...,
) -> list[list[int]]: ...


def generate(
    model: T6,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    tokenizer: Tokenizer | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_tokens: Sequence[int] | None = None,
    vocab_size: int | None = None,
    max_length: int | None = None,
) -> list[str] | list[list[int]]:
    """Continues each prompt, up to and without its first stop token.

    Args:
      model: the model, as t6jax.load gives it.
      prompts: token ids, each prompt beginning with the tokenizer's document_start; or strings,
        which need a tokenizer.
      max_new_tokens: the most tokens that are generated for each prompt.
      tokenizer: what strings are encoded with; t6jax.load_tokenizer gives a run's.
      temperature, top_k, top_p: see Sampling; the default is greedy.
      seed: of the draws; equal calls give equal tokens.
      stop_tokens: ids that end a sequence; default the tokenizer's document_start, where there is
        a tokenizer.
      vocab_size: only ids below it are drawn; default the tokenizer's, or else the model's.
      max_length: tokens that the caches have room for, prompt and new ones together; default the
        model's context_length.

    Returns:
      The new tokens of each prompt, or, for strings, the text that follows the prompt.

    Raises:
      InputError: an argument of the wrong type or value, a prompt that does not fit, a token
        outside the vocabulary, or strings without a tokenizer.
    """
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable):
        raise InputError(
            f"prompts must be a list of strings or of token ids; got {shown(prompts)}: give a list "
            "of one, [prompt]"
        )
    ids: Any = [*prompts]
    strings = any(isinstance(prompt, str) for prompt in ids)
    if strings and not all(isinstance(prompt, str) for prompt in ids):
        raise InputError("prompts must be all strings or all token ids; got both")
    if strings and tokenizer is None:
        raise InputError(
            "prompts are strings, which need a tokenizer: pass tokenizer=t6jax.load_tokenizer(run),"
            " or token ids"
        )
    if tokenizer is not None and not hasattr(tokenizer, "document_start"):
        raise InputError(
            "tokenizer must be a tokenizer, as t6jax.load_tokenizer(run) gives it; got "
            f"{shown(tokenizer)}"
        )
    encoder: Any = tokenizer  # not None where there are strings
    if strings:
        ids = [encode(encoder, text) for text in ids]
    if stop_tokens is None:
        stop_tokens = () if tokenizer is None else (tokenizer.document_start,)
    if vocab_size is None:
        vocab_size = 0 if tokenizer is None else tokenizer.vocab_size
    rows: list[list[int]] = [[] for _ in ids]
    for new in stream(
        model,
        ids,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_tokens=stop_tokens,
        vocab_size=vocab_size,
        max_length=max_length,
    ):
        for row, tokens in zip(rows, new, strict=True):
            row.extend(tokens)
    return (
        [continuation(encoder, *pair) for pair in zip(ids, rows, strict=True)] if strings else rows
    )


def load_tokenizer(ckpt_dir: str | pathlib.Path) -> Tokenizer:
    """The tokenizer of a run, from its directory or one step's.

    Raises:
      InputError: there is no such run.
    """
    from t6jax.data.corpus import run_tokenizer

    workdir, _ = locate(ckpt_dir)
    return run_tokenizer(workdir, read_data_config(workdir))


def encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt's token ids, after the token that starts a document."""
    text = prompt.encode("utf-8", "replace")
    return [tokenizer.document_start, *tokenizer.encode(text).tolist()]


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text that new tokens add to a prompt's, with the space between the two where one is."""
    detokenizer = Detokenizer(tokenizer, prompt)
    return detokenizer.push(tokens) + detokenizer.finish()
