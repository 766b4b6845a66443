"""Prompts prefilled once, then one token at a time against the factor caches."""

import dataclasses
import functools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int, Key

from t6jax.arguments import SEEDS, integer, shown
from t6jax.errors import InputError
from t6jax.fields import Range
from t6jax.generation.sampling import Sampling
from t6jax.model import T6

SHORTEST_PREFILL = 16
# tokens that the device generates before the host reads them
STEPS = 8
_AT_LEAST_1 = Range(low=1)


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
      InputError: at once, for an argument of the wrong type or value, a prompt that does not fit,
        or a token outside the vocabulary.
    """
    if not isinstance(model, T6):
        raise InputError(f"model must be a T6, as t6jax.load gives it; got {shown(model)}")
    config = model.config
    room = config.context_length
    if max_length is not None:
        room = integer("max_length", max_length, _AT_LEAST_1)
    sampling = Sampling(temperature, top_k, top_p, vocab_size)
    max_new_tokens = integer("max_new_tokens", max_new_tokens, _AT_LEAST_1)
    ids = _checked_prompts(prompts, max_new_tokens, room, config.vocab_size)
    if room > config.context_length:
        warnings.warn(
            f"max_length={room} exceeds the model's context_length={config.context_length}: "
            "expect worse text beyond it, or pass a smaller max_length",
            stacklevel=2,
        )
    seed = integer("seed", seed, SEEDS)
    if isinstance(stop_tokens, str | bytes) or not isinstance(stop_tokens, Iterable):
        raise InputError(f"stop_tokens must be token ids; got {shown(stop_tokens)}")
    stops = {integer("stop_tokens", token, Range()) for token in stop_tokens}
    # ids that the model has not are never drawn
    kept = tuple(sorted(stop for stop in stops if 0 <= stop < config.vocab_size))
    return _stream(model, ids, max_new_tokens, room, sampling, seed, kept)


def _stream(
    model: T6,
    prompts: list[np.ndarray],
    max_new_tokens: int,
    room: int,
    sampling: Sampling,
    seed: int,
    stops: tuple[int, ...],
) -> Iterator[list[list[int]]]:
    lengths = np.array([len(p) for p in prompts], np.int32)
    padded = min(room, max(SHORTEST_PREFILL, 1 << (int(lengths.max()) - 1).bit_length()))
    tokens = np.zeros((len(prompts), padded), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt

    # one that is unstacked already is not copied again
    graph, params = nnx.split(model if isinstance(model.blocks, nnx.List) else _unstacked(model))
    kind, knobs = sampling.kind(), (sampling.temperature, sampling.top_p)
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


def _checked_prompts(
    prompts: Any, max_new_tokens: int, room: int, vocab_size: int
) -> list[np.ndarray]:
    """The prompts' ids."""
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable):
        raise InputError(f"prompts must be a list of prompts; got {shown(prompts)}")
    checked = []
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str | bytes) or not isinstance(prompt, Iterable):
            raise InputError(
                f"prompts[{i}] must be a list of token ids, integers; got {shown(prompt)}"
            )
        ids = np.asarray([*prompt] if not isinstance(prompt, jax.Array) else prompt)
        if not ids.size:
            raise InputError(
                f"prompts[{i}] has no token: begin it with the tokenizer's document_start"
            )
        if ids.ndim != 1 or ids.dtype.kind not in "iuO":
            raise InputError(
                f"prompts[{i}] must be a list of token ids, integers; got {shown(prompt)}"
            )
        limits = Range(low=0, high=vocab_size - 1)
        if ids.dtype.kind == "O" or not 0 <= ids.min() <= ids.max() < vocab_size:
            for token in ids.tolist():
                if not isinstance(token, int):
                    integer(f"a token of prompts[{i}]", token, limits)
                if not 0 <= token < vocab_size:
                    raise InputError(
                        f"prompts[{i}] has token {token}, outside the model's vocabulary of "
                        f"{vocab_size}"
                    )
        if len(ids) + max_new_tokens > room:
            raise InputError(
                f"prompts[{i}] of {len(ids)} tokens and max_new_tokens={max_new_tokens} exceed "
                f"the {room} tokens that the caches have room for: shorten them, or pass a larger "
                "max_length"
            )
        checked.append(ids.astype(np.int32))
    if not checked:
        raise InputError("prompts is empty: give at least one prompt")
    return checked
