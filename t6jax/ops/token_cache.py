"""What a mechanism keeps of the past tokens, whatever it is: arrays with an axis of sequences and
an axis of tokens.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenCache:
    """tokens: a pytree of arrays [B, M, ...], room for M tokens of each of B sequences."""

    tokens: Any

    @property
    def max_length(self) -> int:
        """M, the tokens there is room for in each sequence."""
        return jax.tree.leaves(self.tokens)[0].shape[1]

    def append(self, entry: Any, starts: Int[Array, "B"]) -> "TokenCache":
        """Writes the tokens of entry behind the first starts[b] tokens of each sequence b."""
        return TokenCache(write(self.tokens, entry, starts))


def write[T](tokens: T, entry: T, starts: Int[Array, "B"]) -> T:
    """tokens (arrays [B, M, ...]) with entry (arrays [B, T, ...]) behind the first starts[b] of
    each sequence b.

    In place where tokens are donated to the enclosing jit. Tokens for which there is no room are
    dropped.
    """
    (batch, room), new = jax.tree.leaves(tokens)[0].shape[:2], jax.tree.leaves(entry)[0].shape[1]
    sequence = jnp.arange(batch)[:, None]
    position = starts[:, None] + jnp.arange(new)
    # a negative index would count from the end
    position = jnp.where(position < 0, room, position)
    return jax.tree.map(
        lambda old, new: old.at[sequence, position].set(new.astype(old.dtype), mode="drop"),
        tokens,
        entry,
    )
