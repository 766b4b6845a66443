"""The cache of TPA: the factors of past keys and values, never keys and values (section 3.3)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, DTypeLike, Float, Int

from pallas_kernels.decode import cache_layout
from pallas_kernels.decode.cache_layout import CacheLayout
from t6jax.arguments import integer, integers, shown
from t6jax.errors import InputError
from t6jax.fields import Range
from t6jax.ops.rope import RoPE
from t6jax.ops.tpa_factors import (
    FixedFactors,
    TPAEntry,
    TPAQuery,
    check_entry,
    check_factors,
    checked_fixed,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TPACache:
    """The factors of M tokens for each of B sequences, and nothing else.

    Make it with `from_factors` or `empty`, read it with `stored`. How `_rows` stores the factors is
    the cache's own affair: pallas_kernels.decode.cache_layout says where each lies in a token's
    row, of which there are S where the heads are in several shards. `_rope`: where given, b_k is
    stored before RoPE, and rotated when it is read.
    """

    # Float[Array, "B M *S W"]; or what stands for it: a shape, a sharding, an axis
    _rows: Any
    _layout: CacheLayout = dataclasses.field(metadata={"static": True})
    _rope: RoPE | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def from_factors(
        cls,
        a_k: Float[Array, "B M R_K H"] | None,
        b_k: Float[Array, "B M R_K D"] | None,
        a_v: Float[Array, "B M R_V H"] | None,
        b_v: Float[Array, "B M R_V E"] | None = None,
        *,
        fixed: FixedFactors | None = None,
        rope: RoPE | None = None,
        head_shards: int = 1,
    ) -> "TPACache":
        """A cache that holds these factors.

        Args:
          a_k, b_k, a_v: the factors; None for one in `fixed`.
          b_v: None, and none in `fixed`: values share b_k (appendix I). RoPE rotates keys and not
            values, so what is shared is b_k before RoPE: give `rope` with it.
          fixed: the factors that are the same for all tokens, as `decode` is given them. Only their
            shapes are read: the cache does not hold them.
          rope: b_k is not rotated yet; keys are rotated by their position in the cache when they
            are read. None: they are rotated.
          head_shards: how many shards the heads are put in, one for each of as many devices (see
            `sharding`). H need not be a multiple of it. Every shard holds all B factors: on one
            device, leave it 1.

        Raises:
          InputError: shapes disagree, or a factor is missing or given twice.
        """
        _check_head_shards(head_shards)
        tokens = TPAEntry(a_k, b_k, a_v, b_v)
        fixed = checked_fixed(fixed)
        if rope is not None and not isinstance(rope, RoPE):
            raise InputError(f"rope must be a RoPE(base, table_dtype) or None; got {shown(rope)}")
        check_factors(tokens, fixed)
        given: Any = [f if t is None else t for t, f in zip(tokens, fixed, strict=True)]
        k_a, k_b, v_a, v_b = given  # only v_b may still be None
        layout = CacheLayout(
            heads=k_a.shape[-1],
            rank_k=k_a.shape[-2],
            rank_v=v_a.shape[-2],
            dim_k=k_b.shape[-1],
            dim_v=(k_b if v_b is None else v_b).shape[-1],
            stores_a=tokens.a_k is not None,
            stores_b=tokens.b_k is not None,
            shared_b=v_b is None and tokens.b_k is not None,
            head_shards=head_shards,
        )
        return cls(cache_layout.pack(layout, *tokens), layout, rope)

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
        head_shards: int = 1,
    ) -> "TPACache":
        """Room for max_length tokens (M) of each of `batch` sequences (B).

        Args:
          num_heads: H. rank_k, rank_v: R_K, R_V. key_dim, value_dim: D, E.
          head_shards: see `from_factors`.
        """
        _check_head_shards(head_shards)
        count = lambda name, value: integer(name, value, Range(low=1))
        batch = integer("batch", batch, Range(low=0))
        max_length = integer("max_length", max_length, Range(low=0))
        layout = CacheLayout(
            heads=count("num_heads", num_heads),
            rank_k=count("rank_k", rank_k),
            rank_v=count("rank_v", rank_v),
            dim_k=count("key_dim", key_dim),
            dim_v=count("value_dim", value_dim),
            head_shards=head_shards,
        )
        try:
            is_float = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
        except TypeError:
            is_float = False
        if not is_float:
            raise InputError(f"dtype must be one of floating-point numbers; got {shown(dtype)}")
        return cls(jnp.zeros((batch, max_length, *layout.row_shape), dtype), layout)

    @property
    def batch(self) -> int:
        """B, the sequences."""
        return self._rows.shape[0]

    @property
    def max_length(self) -> int:
        """M, the tokens there is room for in each sequence."""
        return self._rows.shape[1]

    def stored(self) -> TPAEntry:
        """The factors that the cache holds, as they were given to `from_factors`."""
        tokens = TPAEntry(*cache_layout.unpack(self._layout, self._rows))
        return tokens._replace(b_v=None) if self._layout.shared_b else tokens

    @property
    def rope(self) -> RoPE | None:
        """The RoPE that b_k is rotated by when it is read; None: it is stored rotated."""
        return self._rope

    @property
    def rows(self) -> Array:
        """The tokens' rows, [B, M, W] or [B, M, S, W], as `layout` lays them out."""
        return self._rows

    @property
    def layout(self) -> CacheLayout:
        """The sizes of the factors, H of all shards together, and where each lies in a row."""
        return self._layout

    def sharding(
        self, mesh: Mesh, *, batch: str | None = None, heads: str | None = None
    ) -> "TPACache":
        """Where each array of this cache lies on a mesh.

        For jax.device_put, or jit's in_shardings and out_shardings. A device holds and reads its
        own sequences' factors, A for its own heads alone.

        Args:
          batch: the mesh axis over which the sequences are sharded; None: they are not.
          heads: the mesh axis over which the heads are sharded; None: they are not.

        Raises:
          InputError: the sequences, or the cache's head_shards, do not divide among the devices of
            that axis.
        """
        for name, axis, size in (
            ("batch", batch, self.batch),
            ("heads", heads, self._layout.head_shards),
        ):
            if axis is not None and axis not in mesh.shape:
                raise InputError(
                    f"{name}={axis!r} is no axis of the mesh, whose axes are "
                    f"{', '.join(mesh.shape)}"
                )
            if axis is not None and size % mesh.shape[axis]:
                what = f"{size} sequences" if name == "batch" else f"a cache of head_shards={size}"
                raise InputError(
                    f"{name}={axis!r}: {what} cannot be spread over {mesh.shape[axis]} devices; "
                    "take a multiple"
                )
        spec = P(batch, None, *[heads] * (self._rows.ndim == 4), None)
        return dataclasses.replace(self, _rows=NamedSharding(mesh, spec))

    def append(self, entry: TPAEntry, starts: Int[Array, "B"]) -> "TPACache":
        """Writes the T tokens of an entry after the first starts[b] tokens of each sequence b.

        In place where the cache is donated to the enclosing jit. Tokens for which there is no room
        are dropped.

        Raises:
          InputError: the entry's factors are not those that the cache holds, or differ in shape.
        """
        check_entry(entry, self._layout, self.batch)
        starts = integers("starts", starts, self.batch)
        new = cache_layout.pack(self._layout, *entry)
        return dataclasses.replace(self, _rows=cache_layout.append(self._rows, new, starts))

    def by_head_shard(self, query: TPAQuery | Array, fixed: FixedFactors) -> tuple[tuple, tuple]:
        """A query, this cache and its fixed factors with an axis of S head shards.

        Returns:
          (query, cache, fixed) and the axes of their arrays' head shards, as jax.vmap takes them;
          the cache and the factors of one shard are those of H / S heads.
        """
        layout = self._layout
        factored = isinstance(query, TPAQuery)
        first, axis = (query.a, 3) if factored else (query, 2)
        first = cache_layout.split_heads(layout, first, axis)
        # where the mesh's axes are Explicit, all shards lie as the cache's do, or else as the
        # query's
        guide, at = (self._rows, 2) if self._rows.ndim == 4 else (first, axis)
        mesh_axis = jax.typeof(guide).sharding.spec[at]
        first = cache_layout.shard_axis(first, axis, mesh_axis)
        query_axes: Any = axis
        if factored:
            query, query_axes = TPAQuery(first, query.b), query._replace(a=axis, b=None)
        else:
            query = first

        def split(a: Array) -> Array:
            a = jnp.moveaxis(cache_layout.split_heads(layout, a), -2, 0)
            return cache_layout.shard_axis(a, 0, mesh_axis)

        fixed = fixed._replace(
            a_k=jax.tree.map(split, fixed.a_k), a_v=jax.tree.map(split, fixed.a_v)
        )
        fixed_axes = fixed._replace(
            **{
                name: None if x is None or name in ("b_k", "b_v") else 0
                for name, x in fixed._asdict().items()
            }
        )
        cache = dataclasses.replace(self, _layout=layout.shard)
        cache_axes = dataclasses.replace(cache, _rows=2 if self._rows.ndim == 4 else None)
        return (query, cache, fixed), (query_axes, cache_axes, fixed_axes)


def _check_head_shards(head_shards: int) -> None:
    if not isinstance(head_shards, int) or head_shards < 1:
        raise InputError(f"head_shards must be a whole number from 1 on, got {head_shards!r}")
