"""Validation loss, and what to hold it against."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from t6jax.data.batches import Sources
from t6jax.data.shards import checked_tokens, find_shards
from t6jax.model import T6, model_inputs

# a table of V x V counts is kept for vocabularies up to this size
LARGEST_BIGRAM_VOCABULARY = 2048
LARGEST_COUNTED_SAMPLE = 10**8
BATCHES_AHEAD = 2


def loss_sums(
    model: T6,
    windows: Int[Array, "B window"],
    mask: Float[Array, "B"],
    document_start: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The loss summed over tokens, and the number of tokens; of this device's, on a mesh.

    Args:
        model: the model.
        windows: rows of T + 1 tokens; each token but the first is a target.
        mask: 1 for rows that count, 0 for those that do not.
        document_start: the token at which attention stops and positions restart; None: nowhere.

    Returns:
        (nats of the unmasked rows' targets, how many targets those are).
    """
    tokens, targets, arguments = model_inputs(windows, document_start)
    nats = model.nats(tokens, targets, **arguments)
    return jnp.sum(nats * mask[:, None]), jnp.sum(mask) * nats.shape[1]


def make_loss_sums(graph: nnx.GraphDef[T6], document_start: int | None = None) -> Callable:
    """`loss_sums` as (params, windows, mask) -> sums, compiled once for each shape."""
    return jax.jit(
        lambda params, windows, mask: loss_sums(
            nnx.merge(graph, params), windows, mask, document_start
        )
    )


def validation_loss(
    loss_sums: Callable,
    params: Any,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[float, int]:
    """(mean loss in nats a token, how many tokens) of the batches, whose rows lie on the devices as
    `sharding` says.
    """
    # every process has all rows, and puts those of its own devices there
    put = lambda x: (
        x
        if sharding is None
        else jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
    )
    # the host stays a few batches ahead, so that the device need not wait for it, and no more, so
    # that a progress bar around `batches` tells the truth; summed in float64
    sums = []
    for batch in batches:
        sums.append(loss_sums(params, *map(put, batch)))
        if len(sums) > BATCHES_AHEAD:
            jax.block_until_ready(sums[-1 - BATCHES_AHEAD])
    nats, tokens = np.asarray(jax.device_get(sums), np.float64).reshape(-1, 2).sum(axis=0)
    return (float(nats / tokens) if tokens else math.nan), int(tokens)


@dataclasses.dataclass(frozen=True)
class Entropies:
    """Cross-entropy, nats a token, of the validation text under the training text's counts; None:
    not computed.
    """

    order_0: float
    bigram: float | None


def entropies(
    sources: Sources, vocab_size: int, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Entropies:
    """The entropies of the targets of these validation batches, each token given nothing, or given
    the one before it.

    Counts come from the first 10^8 training tokens, of several sources by their weights. One count
    is spread evenly over the vocabulary for tokens never seen; a bigram's prediction is its counts
    plus one count spread as order 0 predicts.
    """
    single, pairs = _counts(sources, vocab_size)
    order_0 = (single + 1 / vocab_size) / (single.sum() + 1)
    nats_0 = nats_2 = tokens = 0.0
    for windows, mask in batches:
        windows = windows[mask > 0]
        before, after = windows[:, :-1].ravel(), windows[:, 1:].ravel()
        nats_0 -= float(np.log(order_0[after]).sum())
        tokens += len(after)
        if pairs is not None:
            nats_2 -= float(
                np.log((pairs[before, after] + order_0[after]) / (pairs.sum(1)[before] + 1)).sum()
            )
    return Entropies(nats_0 / tokens, None if pairs is None else nats_2 / tokens)


def _counts(sources: Sources, vocab_size: int) -> tuple[np.ndarray, np.ndarray | None]:
    single = np.zeros(vocab_size)
    pairs = np.zeros((vocab_size, vocab_size)) if vocab_size <= LARGEST_BIGRAM_VOCABULARY else None
    for chunk, overlap in _sample(sources, vocab_size):
        tokens = chunk.astype(np.int64)
        single += np.bincount(tokens[overlap:], minlength=vocab_size)
        if pairs is not None:
            flat = np.bincount(tokens[:-1] * vocab_size + tokens[1:], minlength=vocab_size**2)
            pairs += flat.reshape(vocab_size, vocab_size)
    return single, pairs


def _sample(sources: Sources, vocab_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(tokens, how many at the start were in the last ones too) of the training shards, checked."""
    total = sum(weight for _, weight in sources)
    for folder, weight in sources:
        left = round(LARGEST_COUNTED_SAMPLE * weight / total)
        for path in find_shards(folder, "train"):
            overlap = 0
            for tokens in checked_tokens(path, vocab_size, left):
                left -= len(tokens) - overlap
                yield tokens, overlap
                overlap = 1
            if not left:
                break


def report(
    loss: float, tokens: int, baseline: Entropies | None, bytes_per_token: float | None
) -> str:
    """How many tokens were evaluated, and a table of the loss next to the entropies: nats a token
    and, if bytes_per_token is known, bits a byte.
    """
    rows = (
        [("order-0 entropy", baseline.order_0), ("bigram entropy", baseline.bigram)]
        if baseline
        else []
    )
    rows.append(("model", loss))
    lines = [f"evaluated {tokens:,} tokens"]
    lines.append(f"{'validation text':<18}{'nats/token':>12}{'bits/byte':>12}{'perplexity':>12}")
    for name, nats in rows:
        if nats is not None:
            bits = "-" if bytes_per_token is None else f"{nats / math.log(2) / bytes_per_token:.4f}"
            lines.append(f"{name:<18}{nats:>12.4f}{bits:>12}{math.exp(min(nats, 700)):>12.2f}")
    return "\n".join(lines)
