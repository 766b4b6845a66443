"""What TPA keeps of the past: the factors of keys and values, never the keys and values themselves
(section 3.3).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, DTypeLike, Float, Int

from pallas_kernels.decode import cache_layout
from pallas_kernels.decode.cache_layout import CacheLayout, Rotation
from t6jax.errors import InputError
from t6jax.ops.rope import RoPE


class TPAQuery(NamedTuple):
    """The factors of the query, RoPE already applied to b: Q = 1/R_Q sum_r a_r (x) b_r (eq.
    3.1).
    """

    a: Float[Array, "B N R_Q H"]
    b: Float[Array, "B N R_Q D"]


class TPAEntry(NamedTuple):
    """The factors that tokens add to the cache; None for one that they do not add.

    b_k has RoPE applied (eq. 3.5), unless its cache rotates keys when they are read. Where factors
    are complete, one that is the same for all tokens is [R, .], and one that depends on the
    position alone is [1, T, R, .] or [T, R, .].
    """

    a_k: Float[Array, "#B T R_K H"] | Float[Array, "R_K H"] | None
    b_k: Float[Array, "#B T R_K D"] | Float[Array, "T R_K D"] | Float[Array, "R_K D"] | None
    a_v: Float[Array, "#B T R_V H"] | Float[Array, "R_V H"] | None
    b_v: Float[Array, "#B T R_V E"] | Float[Array, "R_V E"] | None


NOTHING = TPAEntry(None, None, None, None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TPACache:
    """The factors of M tokens for each of B sequences; make it with `from_factors` or `empty`, read
    it with `factors`.

    How the fields store the factors is this class's own affair: _rows, what depends on the token,
    side by side as pallas_kernels.decode.cache_layout lays it out, with an axis S where the heads
    are in several shares; _fixed, factors that are one for all tokens, [R, .]. With b_v in neither,
    values share the keys' b. _rope: where given, b_k is stored as it was before RoPE, and rotated
    when it is read. _table: where B factors are the same for all tokens, what they are at each
    position.
    """

    _rows: Float[Array, "B M *S W"]
    _fixed: TPAEntry
    _table: Float[Array, "M W_B"] | None
    _layout: CacheLayout = dataclasses.field(metadata={"static": True})
    _rope: RoPE | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def from_factors(
        cls,
        a_k: Float[Array, "B M R_K H"] | Float[Array, "R_K H"],
        b_k: Float[Array, "B M R_K D"] | Float[Array, "R_K D"],
        a_v: Float[Array, "B M R_V H"] | Float[Array, "R_V H"],
        b_v: Float[Array, "B M R_V E"] | Float[Array, "R_V E"] | None = None,
        *,
        rope: RoPE | None = None,
        head_shards: int = 1,
    ) -> "TPACache":
        """A cache that holds these factors. Raises InputError where shapes disagree.

        A factor with two axes is the same for all tokens: non-contextual (appendices A.1 and I).
        b_v: None shares b_k with the values (appendix I). RoPE rotates keys and not values, so what
            can be shared is b_k before RoPE: give `rope` with it.
        rope: says that b_k is not rotated yet; keys are rotated, by their place in the cache, when
            they are read.
        head_shards: into how many shares the heads are put, for as many devices to take one each
            (see `sharding`). H need not be a multiple of it. Every share holds all B factors: on
            one device, leave it 1.
        """
        _check_head_shards(head_shards)
        factors = TPAEntry(a_k, b_k, a_v, b_v)
        _check_factors(factors)
        fixed = TPAEntry(*(x if x is not None and x.ndim == 2 else None for x in factors))
        value_factor = b_k if b_v is None else b_v
        if value_factor.ndim != b_k.ndim:
            raise InputError(
                "b_k and b_v must either both depend on the token or neither: give both 4 axes, or "
                "both 2"
            )
        if a_k.ndim != a_v.ndim:
            raise InputError(
                "a_k and a_v must either both depend on the token or neither: give both 4 axes, or "
                "both 2"
            )
        layout = CacheLayout(
            heads=a_k.shape[-1],
            rank_k=a_k.shape[-2],
            rank_v=a_v.shape[-2],
            dim_k=b_k.shape[-1],
            dim_v=value_factor.shape[-1],
            stores_a=a_k.ndim == 4,
            stores_b=b_k.ndim == 4,
            shared_b=b_v is None and b_k.ndim == 4,
            head_shards=head_shards,
        )
        rows = cache_layout.pack(layout, *factors)
        table = None
        if b_k.ndim == 2:
            positions = jnp.arange(rows.shape[1])
            keys = b_k[None] if rope is None else rope(b_k[None, None], positions[None])[0]
            at_each = lambda x: jnp.broadcast_to(x, (len(positions), *x.shape[1:]))
            table = cache_layout.pack_b(layout, at_each(keys), at_each(value_factor[None]))
        return cls(rows, fixed, table, layout, rope)

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
        """Room for max_length tokens (M) of each of `batch` sequences. head_shards: see
        `from_factors`.
        """
        _check_head_shards(head_shards)
        layout = CacheLayout(
            heads=num_heads,
            rank_k=rank_k,
            rank_v=rank_v,
            dim_k=key_dim,
            dim_v=value_dim,
            head_shards=head_shards,
        )
        return cls(jnp.zeros((batch, max_length, *layout.row_shape), dtype), NOTHING, None, layout)

    @property
    def batch(self) -> int:
        """B, the sequences."""
        return self._rows.shape[0]

    @property
    def max_length(self) -> int:
        """M, the tokens there is room for in each sequence."""
        return self._rows.shape[1]

    def factors(self) -> TPAEntry:
        """The factors of all M tokens, b_k rotated, without the axes that they do not depend on.

        [B, M, R, .]; or, where it is the same for all tokens, [R, .]; or, for such a b_k once
        rotated, [M, R_K, D].
        """
        complete = key_value_factors(self.stored(), self._rope, jnp.arange(self.max_length)[None])
        if self._fixed.b_k is not None and self._rope is not None:
            complete = complete._replace(b_k=complete.b_k[0])
        return complete

    def stored(self) -> TPAEntry:
        """The factors as they were given, [B, M, R, .] or [R, .]: see `from_factors`, whose
        arguments they are.
        """
        tokens = TPAEntry(*cache_layout.unpack(self._layout, self._rows))
        if self._layout.shared_b:
            tokens = tokens._replace(b_v=None)
        return TPAEntry(*(f if t is None else t for t, f in zip(tokens, self._fixed, strict=True)))

    @property
    def rope(self) -> RoPE | None:
        """What b_k is to be rotated by when it is read; None: it is stored rotated."""
        return self._rope

    @property
    def num_heads(self) -> int:
        """H, of all shares together."""
        return self._layout.heads

    @property
    def key_dim(self) -> int:
        """D, the features of a query and a key."""
        return self._layout.dim_k

    @property
    def head_shards(self) -> int:
        """S, the shares that the heads are in."""
        return self._layout.head_shards

    def sharding(
        self, mesh: Mesh, *, batch: str | None = None, heads: str | None = None
    ) -> "TPACache":
        """Where each array of this cache lies on a mesh: for jax.device_put, or jit's in_shardings
        and out_shardings.

        batch, heads: the axis of the mesh over which the sequences, or the heads, are spread; None:
            they are not. A device then holds and reads its own sequences' factors, A for its own
            heads alone. Raises InputError where the sequences, or the cache's head_shards, do not
            divide among the devices of that axis.
        """
        for name, axis, size in (("batch", batch, self.batch), ("heads", heads, self.head_shards)):
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
        place = lambda *spec: NamedSharding(mesh, P(*spec))
        rows = place(batch, None, *[heads] * (self._rows.ndim == 4), None)
        return dataclasses.replace(
            self,
            _rows=rows,
            _fixed=jax.tree.map(lambda _: place(), self._fixed),  # a few numbers: everywhere
            _table=None if self._table is None else place(),
        )

    def for_kernels(self) -> tuple[Array, CacheLayout, dict[str, Any]]:
        """(rows, layout, options) as pallas_kernels.flash_tpa.decode takes them."""
        a = None if self._layout.stores_a else (self._fixed.a_k, self._fixed.a_v)
        rotation = None
        if self._rope is not None and self._table is None:
            frequencies = self._rope.frequencies(self._layout.dim_k)
            rotation = Rotation(tuple(map(float, frequencies)), self._rope.table_dtype)
        return self._rows, self._layout, {"a": a, "b": self._table, "rotation": rotation}

    def shares(
        self, query: TPAQuery | Array
    ) -> tuple[tuple[Any, "TPACache"], tuple[Any, "TPACache"]]:
        """(a query and this cache, in S shares of their heads; the arrays' axes of shares, as
        jax.vmap takes them).
        """
        first, axis = (query.a, 3) if isinstance(query, TPAQuery) else (query, 2)
        first = cache_layout.split_heads(self._layout, first, axis)
        # where the mesh's axes are Explicit, all shares lie as the cache's do, or else as the
        # query's
        guide, at = (self._rows, 2) if self._rows.ndim == 4 else (first, axis)
        place = jax.typeof(guide).sharding.spec[at]
        first = cache_layout.place_axis(first, axis, place)
        query, query_axes = (
            (TPAQuery(first, query.b), TPAQuery(axis, None)) if axis == 3 else (first, axis)
        )

        split = lambda a: cache_layout.place_axis(
            jnp.moveaxis(cache_layout.split_heads(self._layout, a), -2, 0), 0, place
        )
        fixed = self._fixed._replace(
            a_k=jax.tree.map(split, self._fixed.a_k), a_v=jax.tree.map(split, self._fixed.a_v)
        )
        axes = TPAEntry(
            *(None if x is None or name[0] == "b" else 0 for name, x in fixed._asdict().items())
        )
        build = lambda rows, fixed, table: dataclasses.replace(
            self, _rows=rows, _fixed=fixed, _table=table, _layout=self._layout.shard
        )
        cache_axes = build(2 if self._rows.ndim == 4 else None, axes, None)
        return (query, build(self._rows, fixed, self._table)), (query_axes, cache_axes)

    def append(self, entry: TPAEntry, starts: Int[Array, "B"]) -> "TPACache":
        """Writes the T tokens of entry behind the first starts[b] tokens of each sequence b.

        In place where the cache is donated to the enclosing jit. Tokens for which there is no room
        are dropped.
        """
        new = cache_layout.pack(self._layout, *entry)
        return dataclasses.replace(self, _rows=cache_layout.append(self._rows, new, starts))


def _check_head_shards(head_shards: int) -> None:
    if not isinstance(head_shards, int) or head_shards < 1:
        raise InputError(f"head_shards must be a whole number from 1 on, got {head_shards!r}")


def key_value_factors(
    stored: TPAEntry, rope: RoPE | None, positions: Int[Array, "#B T"]
) -> TPAEntry:
    """The factors that eq. 3.1 combines, from those that are stored: b_k rotated if it is not yet,
    b_v shared if missing.

    stored: each factor with its axes of sequences and tokens, or [R, .] for all tokens.
    rope: of keys that are to be rotated by their positions; None: they are.
    """
    b_k, b_v = stored.b_k, stored.b_k if stored.b_v is None else stored.b_v
    if rope is not None:
        b_k = rope(b_k if b_k.ndim == 4 else b_k[None, None], positions)
    return stored._replace(b_k=b_k, b_v=b_v)


def _check_factors(factors: TPAEntry) -> None:
    given = {name: x for name, x in factors._asdict().items() if x is not None}
    for name, array in given.items():
        if array.ndim not in (2, 4):
            raise InputError(
                f"{name} must have 4 axes [batch, token, rank, head or feature], or 2 [rank, head "
                "or feature] where it is the "
                f"same for all tokens; got shape {array.shape}"
            )
    (rank_k, heads), rank_v = factors.a_k.shape[-2:], factors.a_v.shape[-2]
    lead = next((x.shape[:2] for x in given.values() if x.ndim == 4), None)
    if lead is None:
        raise InputError("at least one factor must depend on the token: give a_k or b_k its 4 axes")
    for a, b in (("a_k", "b_k"), ("a_v", "b_v" if "b_v" in given else "b_k")):
        if given[a].ndim == given[b].ndim == 2:
            raise InputError(
                f"{a} and {b} must not both be the same for all tokens: give one of them its 4 axes"
            )
    if "b_v" not in given and rank_k != rank_v:
        raise InputError(
            f"a_v has rank {rank_v}, but shares b_k, whose rank is {rank_k}: give b_v, or equal "
            "ranks"
        )
    for name, want in (("b_k", (rank_k, None)), ("a_v", (None, heads)), ("b_v", (rank_v, None))):
        if name not in given:
            continue
        shape = given[name].shape
        wanted = (*lead, *want) if len(shape) == 4 else want
        if any(w is not None and w != got for w, got in zip(wanted, shape, strict=True)):
            text = ", ".join("any" if w is None else str(w) for w in wanted)
            raise InputError(
                f"{name} has shape {shape}, but a_k {factors.a_k.shape} and a_v "
                f"{factors.a_v.shape} ask for ({text})"
            )
    if len({x.dtype for x in given.values()}) > 1:
        raise InputError(
            "the factors must share one dtype, got "
            f"{', '.join(f'{n} {x.dtype}' for n, x in given.items())}"
        )
