"""A cache of whatever a mechanism caches of each token."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Int

from pallas_kernels.decode import cache_layout
from t6jax.errors import InputError


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

        def write(old: Array, new: Array) -> Array:
            if (old.shape[0], *old.shape[2:]) != (new.shape[0], *new.shape[2:]):
                raise InputError(
                    f"an entry has shape {list(new.shape)}, but the cache asks for "
                    f"[{old.shape[0]}, T, {', '.join(map(str, old.shape[2:]))}]"
                )
            return cache_layout.append(old, new, starts)

        return TokenCache(jax.tree.map(write, self.tokens, entry))
