"""How the TPA cache is stored for the GPU kernels: one row a token, all its factors side by side.

    row of token m:  [ b_k: R_K x D | b_v: R_V x E | a_k: R_K x Hp | a_v: R_V x Hp | pad ]

Hp is H rounded up to 8: the copy engine starts on 16 bytes. The padding holds zeros, but nothing depends on it: a head's
output uses no other head's numbers. One row is one contiguous write, so appending a token to B sequences is one scatter of B
rows; reading the first `length` tokens of a sequence is reading one contiguous stretch of memory.

Of the paper's Appendix I: with non-contextual A or B (the same for all tokens, or a function of the position) a row leaves
those factors out; with shared B (b_k = b_v) it holds them once.
"""

import dataclasses

import jax
import jax.numpy as jnp


def round_up(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class CacheLayout:
    """The sizes of the factors, and where each of them lies in a row (all in numbers, not bytes)."""

    heads: int
    rank_k: int
    rank_v: int
    dim_k: int
    dim_v: int
    stores_a: bool = True
    stores_b: bool = True
    shared_b: bool = False

    def __post_init__(self):
        if self.shared_b and (self.rank_k, self.dim_k) != (self.rank_v, self.dim_v):
            raise ValueError("shared B factors need R_K = R_V and D = E")
        if not (self.stores_a or self.stores_b):
            raise ValueError("a cache of neither A nor B factors holds nothing")

    @property
    def padded_heads(self) -> int:
        return round_up(self.heads, 8)

    @property
    def b_k(self) -> int:
        return 0

    @property
    def b_v(self) -> int:
        return 0 if self.shared_b else self.rank_k * self.dim_k

    @property
    def b_width(self) -> int:
        """Numbers in a token's B factors, in a row or, where those do not hold them, in a row of the table of positions."""
        return self.b_v + self.rank_v * self.dim_v

    @property
    def a_k(self) -> int:
        return self.b_width if self.stores_b else 0

    @property
    def a_v(self) -> int:
        return self.a_k + self.rank_k * self.padded_heads

    @property
    def width(self) -> int:
        """Numbers in a row: rows start on 32 bytes, the unit in which the GPU's memory is read."""
        return round_up(self.a_v + self.rank_v * self.padded_heads if self.stores_a else self.a_k, 16)

    @property
    def useful_width(self) -> int:
        """What the factors themselves take: (R_K + R_V) H + R_K D + R_V E where all are stored."""
        return self.a_k + (self.rank_k + self.rank_v) * self.heads * self.stores_a


def pack_b(layout: CacheLayout, b_k: jax.Array, b_v: jax.Array | None) -> jax.Array:
    """B factors [..., R, D] to [..., layout.b_width]: part of a row, or a row of the table of positions."""
    flat = lambda x: x.reshape(*x.shape[:-2], -1)
    return flat(b_k) if layout.shared_b else jnp.concatenate([flat(b_k), flat(b_v)], axis=-1)


def pack(layout: CacheLayout, a_k=None, b_k=None, a_v=None, b_v=None) -> jax.Array:
    """Factors a [..., R, H] and b [..., R, D] to rows [..., layout.width]. Those that the layout leaves out are not looked at."""
    parts = [pack_b(layout, b_k, b_v)] if layout.stores_b else []
    for a in (a_k, a_v) if layout.stores_a else ():
        padded = jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, layout.padded_heads - layout.heads)])
        parts.append(padded.reshape(*a.shape[:-2], -1))
    rows = jnp.concatenate(parts, axis=-1)
    return jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, layout.width - rows.shape[-1])])


def unpack(layout: CacheLayout, rows: jax.Array):
    """The inverse of `pack`: (a_k, b_k, a_v, b_v), None for what a row does not hold."""

    def part(start, rank, width, used):
        return rows[..., start : start + rank * width].reshape(*rows.shape[:-1], rank, width)[..., :used]

    a_k = a_v = b_k = b_v = None
    if layout.stores_a:
        a_k = part(layout.a_k, layout.rank_k, layout.padded_heads, layout.heads)
        a_v = part(layout.a_v, layout.rank_v, layout.padded_heads, layout.heads)
    if layout.stores_b:
        b_k = part(layout.b_k, layout.rank_k, layout.dim_k, layout.dim_k)
        b_v = part(layout.b_v, layout.rank_v, layout.dim_v, layout.dim_v)
    return a_k, b_k, a_v, b_v


def append(rows: jax.Array, new: jax.Array, lengths: jax.Array) -> jax.Array:
    """Writes new rows [B, N, W] behind the first `lengths` [B] rows of each sequence of rows [B, M, W].

    In place when `rows` is donated. A row that would fall before or behind the allocation is dropped.
    """
    B, N, _ = new.shape
    where = lengths[:, None] + jnp.arange(N, dtype=lengths.dtype)
    where = jnp.where(where < 0, rows.shape[1], where)  # a negative index would count from the end
    return rows.at[jnp.arange(B)[:, None], where].set(new.astype(rows.dtype), mode="drop", unique_indices=True)
