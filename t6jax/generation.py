"""Generation: prompts prefilled once, then one token at a time against the factor caches."""

import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from t6jax.data.tokenizers import Tokenizer
from t6jax.errors import InputError
from t6jax.model import T6
from t6jax.runs import locate, read_data_config

SHORTEST_PREFILL = 16
# tokens that the device generates before the host reads them
STEPS = 8


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the logits.

    Attributes:
      temperature: of the softmax; 0 takes the likeliest token.
      top_k: draws only among the k likeliest tokens; 0: all.
      top_p: draws only among the likeliest tokens whose probabilities, summed from the top, reach
        p; 1: all.
      vocab_size: draws only ids below it; 0: all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    vocab_size: int = 0

    def __post_init__(self):
        if self.temperature < 0:
            raise InputError(f"temperature must be at least 0; got {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"top_k must be at least 0 (0: all tokens); got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must lie in (0, 1]; got {self.top_p}")

    def kind(self) -> "Sampling":
        """What a compiled program depends on: all but the values of temperature and top_p, which
        `draw` takes as arrays.
        """
        return dataclasses.replace(
            self, temperature=float(self.temperature > 0), top_p=1.0 if self.top_p == 1 else 0.5
        )

    def draw(
        self,
        logits: Float[Array, "B V"],
        key: Key[Array, ""],
        temperature: Float[Array, ""] | float | None = None,
        top_p: Float[Array, ""] | float | None = None,
    ) -> Int[Array, "B"]:
        """One token for each row.

        Args:
          logits: [B, V].
          key: of the draw.
          temperature: replaces the attribute, where that is not 0.
          top_p: replaces the attribute, where that is not 1.
        """
        if self.vocab_size:
            logits = jnp.where(jnp.arange(logits.shape[-1]) < self.vocab_size, logits, -jnp.inf)
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = logits / (self.temperature if temperature is None else temperature)
        if 0 < self.top_k < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p < 1:
            ranked = jnp.sort(logits, axis=-1, descending=True)
            p = jax.nn.softmax(ranked, axis=-1)
            # a token stays if those before it do not reach top_p yet; so the likeliest always stays
            kept = jnp.cumsum(p, axis=-1) - p < (self.top_p if top_p is None else top_p)
            least = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """The state of decoding.

    Attributes:
      caches: one for each layer.
      tokens: the newest token of each sequence, which the caches do not hold yet.
      lengths: the tokens of each sequence that the caches hold.
      done: whether the sequence has met a stop token.
      key: of the next draw.
    """

    caches: tuple
    tokens: Int[Array, "B"]
    lengths: Int[Array, "B"]
    done: Bool[Array, "B"]
    key: Key[Array, ""]


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
      The new tokens of each prompt, or, for strings, the text of them.

    Raises:
      InputError: what does not fit or is outside the vocabulary, or strings without a tokenizer.
    """
    strings = isinstance(prompts[0], str) if len(prompts) else False
    if strings and tokenizer is None:
        raise InputError(
            "prompts are strings, which need a tokenizer: pass tokenizer=t6jax.load_tokenizer(run),"
            " or token ids"
        )
    encoder: Any = tokenizer  # not None where there are strings
    ids: Any = prompts
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
    return [encoder.decode(row).decode("utf-8", "replace") for row in rows] if strings else rows


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


def stream(
    model: T6,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_tokens: Sequence[int] = (),
    vocab_size: int = 0,
    max_length: int | None = None,
) -> Iterator[list[list[int]]]:
    """Generates like `generate`, and yields the next few tokens of each prompt as they are ready.

    Decoding is compiled once for a number of prompts and a max_length, whatever the lengths;
    prefill once for each power of two that the longest prompt is padded to. Each call copies the
    parameters into the form that decodes fastest: give model.unstacked() where many calls follow.

    Args:
      model: the model.
      prompts: token ids of each prompt.
      max_new_tokens: the most tokens that are generated for each prompt.
      temperature, top_k, top_p, vocab_size: see Sampling; the default is greedy.
      seed: of the draws; equal calls give equal tokens.
      stop_tokens: ids that end a sequence.
      max_length: tokens that the caches have room for, prompt and new ones together; default the
        model's context_length. Beyond it a warning says that the model was not made for positions
        that far.

    Yields:
      A list of new tokens for each prompt, empty for one that has met a stop token.

    Raises:
      InputError: what does not fit or is outside the vocabulary.
    """
    config = model.config
    room = config.context_length if max_length is None else max_length
    sampling = Sampling(temperature, top_k, top_p, vocab_size)
    _check_prompts(prompts, max_new_tokens, room, config.vocab_size)
    if room > config.context_length:
        warnings.warn(
            f"max_length={room} exceeds the model's context_length={config.context_length}: "
            "expect worse text beyond it, or pass a smaller max_length",
            stacklevel=2,
        )
    lengths = np.array([len(p) for p in prompts], np.int32)
    padded = min(room, max(SHORTEST_PREFILL, 1 << (int(lengths.max()) - 1).bit_length()))
    tokens = np.zeros((len(prompts), padded), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt

    # one that is unstacked already is not copied again
    graph, params = nnx.split(model if isinstance(model.blocks, nnx.List) else _unstacked(model))
    kind, knobs = sampling.kind(), (sampling.temperature, sampling.top_p)
    stops = tuple(sorted(set(stop_tokens)))
    state = _prefill(graph, params, tokens, lengths, jax.random.key(seed), knobs, room, kind, stops)
    finished = np.zeros(len(prompts), bool)
    # Steps are launched before the host reads the tokens of those before them, so that the device
    # does not wait for the host.
    launched, pending = 1, [np.asarray(state.tokens)[None]]
    while pending or launched < max_new_tokens:
        if launched < max_new_tokens and not finished.all():
            steps = min(STEPS, max_new_tokens - launched)
            state, tokens = _decode(graph, params, state, steps, knobs, kind, stops)
            pending.append(tokens[:steps])
            launched += steps
        elif finished.all():
            return
        new = np.asarray(pending.pop(0))
        rows = []
        for i in range(len(prompts)):
            row = [] if finished[i] else new[:, i].tolist()
            stop = next((n for n, token in enumerate(row) if token in stops), None)
            finished[i] |= stop is not None
            rows.append(row[:stop])
        yield rows


@nnx.jit
def _unstacked(model: T6) -> T6:
    return model.unstacked()


@functools.partial(jax.jit, static_argnames=("graph", "room", "kind", "stops"))
def _prefill(graph, params, tokens, lengths, key, knobs, room, kind, stops) -> _State:
    model = nnx.merge(graph, params)
    logits, caches = model.prefill(tokens, lengths, model.empty_caches(len(tokens), room))
    key, draw = jax.random.split(key)
    first = kind.draw(logits, draw, *knobs)
    return _State(caches, first, lengths, _is_stop(first, stops), key)


@functools.partial(jax.jit, static_argnames=("graph", "kind", "stops"), donate_argnames="state")
def _decode(
    graph, params, state, steps, knobs, kind, stops
) -> tuple[_State, Int[Array, "STEPS B"]]:
    """The next `steps` tokens of each sequence, at most STEPS; fewer once all have met a stop
    token.
    """
    model = nnx.merge(graph, params)

    def one(carry):
        i, state, made = carry
        lengths = state.lengths + 1
        logits, caches = model.extend(state.tokens[:, None], lengths, state.caches)
        key, draw = jax.random.split(state.key)
        tokens = kind.draw(logits[:, 0], draw, *knobs)
        done = state.done | _is_stop(tokens, stops)
        return i + 1, _State(caches, tokens, lengths, done, key), made.at[i].set(tokens)

    going = lambda carry: (carry[0] < steps) & ~jnp.all(carry[1].done)
    made = jnp.zeros((STEPS, len(state.tokens)), jnp.int32)
    _, state, made = jax.lax.while_loop(going, one, (jnp.zeros((), jnp.int32), state, made))
    return state, made


def _is_stop(tokens: Int[Array, "B"], stops: tuple[int, ...]) -> Bool[Array, "B"]:
    return jnp.isin(tokens, jnp.array(stops, jnp.int32)) if stops else jnp.zeros(tokens.shape, bool)


def _check_prompts(
    prompts: Sequence[Sequence[int]], max_new_tokens: int, room: int, vocab_size: int
) -> None:
    if not len(prompts):
        raise InputError("prompts is empty: give at least one prompt")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1; got {max_new_tokens}")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(
                f"prompts[{i}] has no token: begin it with the tokenizer's document_start"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            wrong = next(t for t in prompt if not 0 <= t < vocab_size)
            raise InputError(
                f"prompts[{i}] has token {wrong}, outside the model's vocabulary of {vocab_size}"
            )
        if len(prompt) + max_new_tokens > room:
            raise InputError(
                f"prompts[{i}] of {len(prompt)} tokens and max_new_tokens={max_new_tokens} exceed "
                f"the {room} tokens that the caches have room for: shorten them, or pass a larger "
                "max_length"
            )
