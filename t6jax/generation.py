"""Generation: prompts prefilled once, then one token at a time against the factor caches."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from t6jax.errors import InputError
from t6jax.model import T6

SHORTEST_PREFILL = 16
# tokens that the device makes before the host looks at them again
CHUNK = 8


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the logits.

    temperature: 0 takes the likeliest. top_k: only among the k likeliest; 0: all. top_p: only among
    the likeliest whose probabilities, summed from the top, reach p; 1: all. vocab_size: only ids
    below it; 0: all.
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
        """What has to be compiled anew: all but the values of temperature and top_p, which `draw`
        takes traced.
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
        """One token for each row. temperature and top_p: in place of its own, where those are not 0
        and not 1.
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
    """tokens: each sequence's newest, not in the caches yet. lengths: what the caches hold. done:
    has met a stop token.
    """

    caches: tuple
    tokens: Int[Array, "B"]
    lengths: Int[Array, "B"]
    done: Bool[Array, "B"]
    key: Key[Array, ""]


def generate(
    model: T6, prompts: Sequence[Sequence[int]], max_new_tokens: int, **options
) -> list[list[int]]:
    """The tokens that follow each prompt: at most max_new_tokens, up to and without the first stop
    token.

    Takes `stream`'s options.
    """
    rows: list[list[int]] = [[] for _ in prompts]
    for new in stream(model, prompts, max_new_tokens, **options):
        for row, tokens in zip(rows, new, strict=True):
            row.extend(tokens)
    return rows


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
    """Yields, as they are made, the next few tokens of each prompt (none for one that has met a
    stop token).

    temperature, top_k, top_p, vocab_size: see Sampling; the default is greedy.
    seed: of the draws; equal calls give equal tokens.
    max_length: room of the caches, prompt and new tokens together; default the model's
        context_length.

    Decoding is compiled once for a number of prompts and a max_length, whatever the lengths;
    prefill once for each power of two that the longest prompt is padded to. Each call makes a copy
    of the parameters in the form that decodes fastest: give model.unstacked() where many calls
    follow. Raises InputError for what does not fit or is outside the vocabulary.
    """
    config = model.config
    room = config.context_length if max_length is None else max_length
    sampling = Sampling(temperature, top_k, top_p, vocab_size)
    _check_prompts(prompts, max_new_tokens, room, config.vocab_size)
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
    # The state after the first token is one token ahead of the caches. Each chunk is launched
    # before the one before it is looked at, so that the device need not wait for the host.
    made, waiting = 1, [np.asarray(state.tokens)[None]]
    while waiting or made < max_new_tokens:
        if made < max_new_tokens and not finished.all():
            steps = min(CHUNK, max_new_tokens - made)
            state, chunk = _decode(graph, params, state, steps, knobs, kind, stops)
            waiting.append(chunk[:steps])
            made += steps
        elif finished.all():
            return
        new = np.asarray(waiting.pop(0))
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
) -> tuple[_State, Int[Array, "CHUNK B"]]:
    """Up to CHUNK further tokens of each sequence, `steps` of them asked for; fewer once all have
    met a stop token.
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
    made = jnp.zeros((CHUNK, len(state.tokens)), jnp.int32)
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
                f"prompts[{i}] holds no token: begin it with the tokenizer's document_start"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            wrong = next(t for t in prompt if not 0 <= t < vocab_size)
            raise InputError(
                f"prompts[{i}] holds token {wrong}, outside the model's vocabulary of {vocab_size}"
            )
        if len(prompt) + max_new_tokens > room:
            raise InputError(
                f"prompts[{i}] of {len(prompt)} tokens and max_new_tokens={max_new_tokens} exceed "
                f"the {room} tokens there is "
                "room for: shorten them, or pass a larger max_length"
            )
