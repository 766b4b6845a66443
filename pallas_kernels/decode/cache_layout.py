"""How the TPA cache is stored for the GPU kernels: one row a token, all its factors side by side.

    row of token m:  [ b_k: R_K x D | b_v: R_V x E | a_k: R_K x Hp | a_v: R_V x Hp | pad ]

Hp is H rounded up to 8: the copy engine starts on 16 bytes. The padding holds zeros, but nothing
depends on it: a head's output uses no other head's numbers. One row is one contiguous write, so
appending a token to B sequences is one scatter of B rows; reading the first `length` tokens of a
sequence is reading one contiguous stretch of memory.

Of the paper's Appendix I: with non-contextual A or B (the same for all tokens, or a function of the
position) a row leaves those factors out; with shared B (b_k = b_v) it holds them once.

Where the heads are sharded over several devices, a token has a row for each shard, [S, W]: the B
factors of all heads, which every device needs, and the A factors of the shard's heads. The arrays
then have one more axis, which a mesh can shard.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Shaped


def round_up(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Rotation:
    """RoPE for keys that are stored before it: features i and i + D/2 of b_k turn by position *
    frequencies[i].

    The angle is the float32 product; its cosine and sine are rounded to `dtype`, the turned key to
    the cache's.
    """

    frequencies: tuple[float, ...]
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class CacheLayout:
    """The sizes of the factors, and where each of them lies in a row (all in numbers, not
    bytes).
    """

    heads: int
    rank_k: int
    rank_v: int
    dim_k: int
    dim_v: int
    stores_a: bool = True
    stores_b: bool = True
    shared_b: bool = False
    head_shards: int = 1

    def __post_init__(self):
        if self.head_shards < 1:
            raise ValueError(f"head_shards must be at least 1, not {self.head_shards}")
        if self.shared_b and (self.rank_k, self.dim_k) != (self.rank_v, self.dim_v):
            raise ValueError("shared B factors need R_K = R_V and D = E")
        if not (self.stores_a or self.stores_b):
            raise ValueError("a cache of neither A nor B factors holds nothing")

    @property
    def shard(self) -> "CacheLayout":
        """The layout of one shard of the heads: H / S of them, rounded up."""
        return dataclasses.replace(self, heads=-(-self.heads // self.head_shards), head_shards=1)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of a token: [W], or [S, W] where the heads are in S shards. (Without A factors
        all shards are alike: [W].)
        """
        return (
            (self.head_shards, self.width)
            if self.stores_a and self.head_shards > 1
            else (self.width,)
        )

    @property
    def padded_heads(self) -> int:
        return round_up(self.shard.heads, 8)

    @property
    def b_k(self) -> int:
        return 0

    @property
    def b_v(self) -> int:
        return 0 if self.shared_b else self.rank_k * self.dim_k

    @property
    def b_width(self) -> int:
        """Numbers in a token's B factors, in a row or, where those do not hold them, in a row of
        the table of positions.
        """
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
        return round_up(
            self.a_v + self.rank_v * self.padded_heads if self.stores_a else self.a_k, 16
        )

    @property
    def useful_width(self) -> int:
        """What the factors of a row themselves take: (R_K + R_V) H + R_K D + R_V E where all are
        stored.
        """
        return self.a_k + (self.rank_k + self.rank_v) * self.shard.heads * self.stores_a


def pack_b(
    layout: CacheLayout,
    b_k: Float[Array, "*batch R_K D"],
    b_v: Float[Array, "*batch R_V E"] | None,
) -> Float[Array, "*batch W_B"]:
    """B factors [..., R, D] to [..., layout.b_width]: the start of a row, or a row of the table of
    positions.
    """
    factors = [b_k] if layout.shared_b else [b_k, b_v]
    return jnp.concatenate([x.reshape(*x.shape[:-2], -1) for x in factors], axis=-1)


def split_heads(layout: CacheLayout, x: jax.Array, axis: int = -1) -> jax.Array:
    """x with its axis of H heads as two: S shards of H / S heads, the last ones padded with
    zeros.
    """
    axis, shards, heads = axis % x.ndim, layout.head_shards, layout.shard.heads
    if missing := shards * heads - x.shape[axis]:
        x = jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
    return x.reshape(*x.shape[:axis], shards, heads, *x.shape[axis + 1 :])


def merge_heads(layout: CacheLayout, x: jax.Array, axis: int) -> jax.Array:
    """The inverse of `split_heads`: `axis` is that of the shards."""
    if x.shape[axis] * x.shape[axis + 1] != layout.heads:
        x = shard_axis(x, axis, None)  # the heads that are left cannot be sharded evenly
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return (
        x if x.shape[axis] == layout.heads else jax.lax.slice_in_dim(x, 0, layout.heads, axis=axis)
    )


def shard_axis(x: jax.Array, axis: int, name) -> jax.Array:
    """x with one axis sharded over the mesh axis `name`, or over none.

    Only a mesh with Explicit axes has to be told; under another, x is returned as it is.
    """
    sharding = jax.typeof(x).sharding
    if not sharding.mesh.explicit_axes or sharding.spec[axis] == name:
        return x
    return jax.sharding.reshard(
        x, NamedSharding(sharding.mesh, P(*sharding.spec[:axis], name, *sharding.spec[axis + 1 :]))
    )


def pack(
    layout: CacheLayout, a_k: Any = None, b_k: Any = None, a_v: Any = None, b_v: Any = None
) -> jax.Array:
    """Factors a [..., R, H] and b [..., R, D] to rows [..., *layout.row_shape]. Those that it
    leaves out are not looked at.
    """
    columns = [pack_b(layout, b_k, b_v)] if layout.stores_b else []
    if len(layout.row_shape) == 2:  # a row for each shard of the heads, all with the same B factors
        a_k, a_v = [jnp.moveaxis(split_heads(layout, a), -2, -3) for a in (a_k, a_v)]
        axis = a_k.ndim - 3
        columns = [
            jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], layout.head_shards, x.shape[-1]))
            for x in columns
        ]
        columns = [shard_axis(x, axis, jax.typeof(a_k).sharding.spec[axis]) for x in columns]
    for a in (a_k, a_v) if layout.stores_a else ():
        if missing := layout.padded_heads - a.shape[-1]:
            a = jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, missing)])
        columns.append(a.reshape(*a.shape[:-2], -1))
    if missing := layout.width - sum(x.shape[-1] for x in columns):
        columns.append(jnp.zeros((*columns[0].shape[:-1], missing), columns[0].dtype))
    return jnp.concatenate(columns, axis=-1)


def unpack(
    layout: CacheLayout, rows: Shaped[Array, "*batch W"]
) -> tuple[
    Shaped[Array, "*_ R_K H"] | None,
    Shaped[Array, "*_ R_K D"] | None,
    Shaped[Array, "*_ R_V H"] | None,
    Shaped[Array, "*_ R_V E"] | None,
]:
    """The inverse of `pack`: (a_k, b_k, a_v, b_v), None for factors that a row does not hold."""

    def factor(start, rank, width, used):
        return rows[..., start : start + rank * width].reshape(*rows.shape[:-1], rank, width)[
            ..., :used
        ]

    a_k = a_v = b_k = b_v = None
    if layout.stores_a:
        a_k = factor(layout.a_k, layout.rank_k, layout.padded_heads, layout.shard.heads)
        a_v = factor(layout.a_v, layout.rank_v, layout.padded_heads, layout.shard.heads)
        if len(layout.row_shape) == 2:
            a_k, a_v = [
                merge_heads(layout, jnp.moveaxis(a, -3, -2), a.ndim - 2) for a in (a_k, a_v)
            ]
            rows = rows[..., 0, :]
    if layout.stores_b:
        b_k = factor(layout.b_k, layout.rank_k, layout.dim_k, layout.dim_k)
        b_v = factor(layout.b_v, layout.rank_v, layout.dim_v, layout.dim_v)
    return a_k, b_k, a_v, b_v


def append(
    rows: Shaped[Array, "B M *row"], new: Shaped[Array, "B N *row"], lengths: Int[Array, "B"]
) -> Shaped[Array, "B M *row"]:
    """Writes new rows after the first `lengths` rows of each sequence.

    In place when `rows` is donated. A row that would fall outside of the allocation is dropped.
    """

    # a sequence at a time under vmap, so that sequences which lie on several devices stay there
    @jax.vmap
    def write(rows, new, length):
        where = length + jnp.arange(len(new), dtype=length.dtype)
        where = jnp.where(where < 0, len(rows), where)  # a negative index would count from the end
        return rows.at[where].set(new.astype(rows.dtype), mode="drop", unique_indices=True)

    for axis in (0, *range(2, rows.ndim - 1)):
        new = shard_axis(new, axis, jax.typeof(rows).sharding.spec[axis])
    return write(rows, new, shard_axis(lengths, 0, jax.typeof(rows).sharding.spec[0]))
