"""What TPA keeps of the past: the factors of keys and values, never the keys and values themselves (section 3.3)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from t6jax.errors import InputError


class TPAQuery(NamedTuple):
    """The factors of the query, RoPE already applied to b: Q = 1/R_Q sum_r a_r (x) b_r (eq. 3.1)."""

    a: Float[Array, "B N R_Q H"]
    b: Float[Array, "B N R_Q D"]


class TPAEntry(NamedTuple):
    """The factors that tokens add to the cache, RoPE already applied to b_k (eq. 3.5)."""

    a_k: Float[Array, "B T R_K H"]
    b_k: Float[Array, "B T R_K D"]
    a_v: Float[Array, "B T R_V H"]
    b_v: Float[Array, "B T R_V E"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TPACache:
    """The factors of M tokens for each of B sequences; make it with `from_factors` or `empty`, read it with `factors`.

    How the fields store the factors is this class's own affair.
    """

    _entry: TPAEntry

    @classmethod
    def from_factors(
        cls,
        a_k: Float[Array, "B M R_K H"],
        b_k: Float[Array, "B M R_K D"],
        a_v: Float[Array, "B M R_V H"],
        b_v: Float[Array, "B M R_V E"],
    ) -> "TPACache":
        """A cache that holds these factors, RoPE already applied to b_k. Raises InputError where shapes disagree."""
        entry = TPAEntry(a_k, b_k, a_v, b_v)
        _check_factors(entry)
        return cls(entry)

    @classmethod
    def empty(
        cls,
        batch: int,
        max_length: int,
        *,
        num_heads: int,
        rank_k: int,
        rank_v: int,
        key_dim: int,
        value_dim: int,
        dtype: DTypeLike = jnp.bfloat16,
    ) -> "TPACache":
        """Room for max_length tokens (M) of each of `batch` sequences."""
        shapes = ((rank_k, num_heads), (rank_k, key_dim), (rank_v, num_heads), (rank_v, value_dim))
        return cls(TPAEntry(*(jnp.zeros((batch, max_length, *shape), dtype) for shape in shapes)))

    @property
    def max_length(self) -> int:
        """M, the tokens there is room for in each sequence."""
        return self._entry.a_k.shape[1]

    def factors(self) -> TPAEntry:
        """The factors of all M tokens, as `from_factors` takes them."""
        return self._entry

    def append(self, entry: TPAEntry, starts: Int[Array, "B"]) -> "TPACache":
        """Writes the T tokens of entry behind the first starts[b] tokens of each sequence b.

        In place where the cache is donated to the enclosing jit. Tokens for which there is no room are dropped.
        """
        batch, tokens = entry.a_k.shape[:2]
        sequence = jnp.arange(batch)[:, None]
        position = starts[:, None] + jnp.arange(tokens)
        # a negative index would count from the end
        position = jnp.where(position < 0, self.max_length, position)
        write = lambda old, new: old.at[sequence, position].set(new.astype(old.dtype), mode="drop")
        return TPACache(jax.tree.map(write, self._entry, entry))


def _check_factors(entry: TPAEntry) -> None:
    batch, length, rank_k, heads = _rank_4("a_k", entry.a_k)
    rank_v = _rank_4("a_v", entry.a_v)[2]
    for name, array, want in (
        ("b_k", entry.b_k, (batch, length, rank_k, None)),
        ("a_v", entry.a_v, (batch, length, None, heads)),
        ("b_v", entry.b_v, (batch, length, rank_v, None)),
    ):
        shape = _rank_4(name, array)
        if any(w is not None and w != got for w, got in zip(want, shape, strict=True)):
            wanted = ", ".join("any" if w is None else str(w) for w in want)
            raise InputError(f"{name} has shape {shape}, but a_k {entry.a_k.shape} and a_v {entry.a_v.shape} ask for ({wanted})")
    if len({x.dtype for x in entry}) > 1:
        raise InputError(
            f"the factors must share one dtype, got {', '.join(f'{n} {x.dtype}' for n, x in entry._asdict().items())}"
        )


def _rank_4(name: str, array: Array) -> tuple[int, ...]:
    if array.ndim != 4:
        raise InputError(f"{name} must have 4 axes [batch, token, rank, head or feature], got shape {array.shape}")
    return array.shape
