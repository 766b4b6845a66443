"""A cache of whatever a mechanism caches of each token."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Int

from pallas_kernels.decode import cache_layout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenCache:
    """Room for M tokens of each of B sequences.

    Attributes:
      tokens: a pytree of arrays [B, M, ...].
    """

    tokens: Any

    @property
    def max_length(self) -> int:
        """M, the tokens there is room for in each sequence."""
        return jax.tree.leaves(self.tokens)[0].shape[1]

    def append(self, entry: Any, starts: Int[Array, "B"]) -> "TokenCache":
        """Writes the tokens of an entry after the first starts[b] tokens of each sequence b.

        In place where the cache is donated to the enclosing jit. Tokens for which there is no room
        are dropped.

        Args:
          entry: a pytree of arrays [B, T, ...], like `tokens`.
          starts: int [B].
        """
        write = lambda old, new: cache_layout.append(old, new, starts)
        return TokenCache(jax.tree.map(write, self.tokens, entry))
