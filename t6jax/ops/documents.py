"""Where documents begin and end in a window of tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def document_segments(
    tokens: Int[Array, "B T"], document_start: int
) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """(segment ids, positions): documents numbered from 0 in each row, positions from 0 in each
    document.

    What precedes the first document_start is the rest of a document whose beginning the window does
    not hold; its positions count from the window's start.
    """
    begins = tokens == document_start
    index = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
    last_begin = jax.lax.cummax(jnp.where(begins, index, 0), axis=tokens.ndim - 1)
    return jnp.cumsum(begins, axis=-1, dtype=jnp.int32), index - last_begin


def model_arguments(
    tokens: Int[Array, "B T"], document_start: int | None
) -> dict[str, Int[Array, "B T"]]:
    """T6's keyword arguments that keep attention inside documents; none if there is no start."""
    if document_start is None:
        return {}
    segment_ids, positions = document_segments(tokens, document_start)
    return {"segment_ids": segment_ids, "positions": positions}
