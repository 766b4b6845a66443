"""What the mechanisms of the TPA family share: keys and values that are sums of tensor products
(sections 3.1 to 3.3).

A mechanism adds its queries; which factors depend on the token is said by its config.
"""

import dataclasses
import functools
import itertools
import math
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from pallas_kernels.factors.tensor_products import Product, head_room
from t6jax.attention.base import Attention, AttentionConfig, Initializer
from t6jax.errors import InputError
from t6jax.fields import OneOf, Range
from t6jax.layers import pad_columns, worth_copying_weights
from t6jax.ops.attention import Segments
from t6jax.ops.decode import decode
from t6jax.ops.names import PROJECTION
from t6jax.ops.precision import at_least_float32
from t6jax.ops.rope import RoPE
from t6jax.ops.tensor_product import combine, expand, factors
from t6jax.ops.tpa_cache import TPACache
from t6jax.ops.tpa_factors import FixedFactors, TPAEntry, TPAQuery, key_value_factors
from t6jax.parallel import sequence

# Bounds of the uniform start of a factor map, from the axes of its weights as the published code
# stores them: (d_model, h, R) for an A factor, (d_model, R, d_h) for a B factor.
INITS = {
    # Xavier on the weight matrix, as the paper's text has it (appendix I): n_in = d_model, n_out =
    # R * size
    "xavier": lambda d_model, axis_1, axis_2: math.sqrt(6 / (d_model + axis_1 * axis_2)),
    # Xavier on the three-axis view, as the published code has it: PyTorch takes the last axis for a
    # receptive field
    "xavier_three_axes": lambda d_model, axis_1, axis_2: math.sqrt(
        6 / (axis_2 * (axis_1 + d_model))
    ),
}

# Nonlinear head factors (appendix I): of each of the R vectors a_r, softmax over its h heads
ACTIVATIONS = {
    "none": lambda a: a,
    "sigmoid": jax.nn.sigmoid,
    "softmax": functools.partial(jax.nn.softmax, axis=-1),
}


@dataclasses.dataclass(frozen=True)
class FactoredConfig(AttentionConfig):
    """Keys and values have factors.

    With shared_kv_b the one set of B factors is cached before RoPE, which rotates keys and not
    values: values read it as it is, and keys rotate it by its position in the cache when they are
    formed. (Cached rotated, it would have to be rotated back for the values, and would carry the
    rounding of two rotations.)
    """

    contextual_a: ClassVar[bool] = True
    contextual_b: ClassVar[bool] = True

    rank_k: Annotated[int, Range(low=1), "R_K of eq. 3.1."] = 2
    rank_v: Annotated[int, Range(low=1), "R_V of eq. 3.1."] = 2
    init: Annotated[str, OneOf(tuple(INITS)), "How factor maps are initialized."] = "xavier"
    shared_kv_b: Annotated[bool, "The values' B factors are the keys' (appendix I)."] = False
    activation_k: Annotated[
        str,
        OneOf(tuple(ACTIVATIONS)),
        "What follows the linear maps of the keys' head factors A (appendix I).",
    ] = "none"
    activation_v: Annotated[str, OneOf(tuple(ACTIVATIONS)), "As activation_k, for the values."] = (
        "none"
    )

    def __post_init__(self):
        super().__post_init__()
        activations = [field.name for field in self.activations()]
        for key in activations:
            if not self.contextual_a and getattr(self, key) != "none":
                raise InputError(
                    f"model.attention.{key} must be none with {self.name}, whose head factors do "
                    f"not depend on the token; got {getattr(self, key)!r}"
                )
        if self.shared_kv_b and self.rank_k != self.rank_v:
            raise InputError(
                "model.attention.rank_v must equal model.attention.rank_k with shared_kv_b; got "
                f"rank_k={self.rank_k}, rank_v={self.rank_v}"
            )

    @property
    def mixes_heads(self) -> bool:
        return any(getattr(self, field.name) == "softmax" for field in self.activations())

    @property
    def b_dim(self) -> int:
        """Features of a b_r."""
        return self.head_dim

    @property
    def b_numbers(self) -> int:
        """Numbers that stand for the features of one rank."""
        return self.head_dim

    @property
    def linear(self) -> bool:
        """Whether each token's queries, keys and values are eq. 3.1 of linear maps alone, each with
        factors of its own.
        """
        plain = all(getattr(self, field.name) == "none" for field in self.activations())
        return self.contextual_a and self.contextual_b and not self.shared_kv_b and plain

    @classmethod
    def activations(cls) -> list[dataclasses.Field]:
        """The keys that name a head factor's nonlinearity."""
        return [field for field in dataclasses.fields(cls) if field.name.startswith("activation_")]

    @property
    def keys_rotated_when_read(self) -> bool:
        """Whether keys' B factors are kept as they are before RoPE."""
        return self.shared_kv_b or not self.contextual_b

    @property
    def cached_numbers_per_token(self) -> int:
        b_sets = self.rank_k + (0 if self.shared_kv_b else self.rank_v)
        return (
            self.contextual_a * (self.rank_k + self.rank_v) * self.num_heads
            + self.contextual_b * b_sets * self.b_numbers
        )

    def input_parameter_count(self, d_model: int) -> int:
        return (
            self.query_parameter_count(d_model)
            + self.factor_parameter_count(d_model, self.rank_k)
            + self.factor_parameter_count(d_model, self.rank_v, with_b=not self.shared_kv_b)
        )

    def query_parameter_count(self, d_model: int) -> int:
        """Parameters of the queries."""
        raise NotImplementedError

    def factor_parameter_count(self, d_model: int, rank: int, *, with_b: bool = True) -> int:
        """Parameters of the A and B factors of the queries, the keys or the values."""
        a = self.num_heads * (d_model if self.contextual_a else 1)
        b = self.b_numbers * (d_model if self.contextual_b else 1)
        return rank * (a + with_b * b)


class Factored(Attention):
    """Keys and values are 1/R sum_r a_r (x) b_r, cached as their factors; a mechanism adds its
    queries.

    A factor map is [d_model, R, size]; a factor that is the same for all tokens is [R, size].
    """

    config: FactoredConfig

    def __init__(self, config: FactoredConfig, d_model: int, init: Initializer, **options: Any):
        super().__init__(config, d_model, init, **options)
        self.w_a_k, self.w_a_v = self.new_a(init, config.rank_k), self.new_a(init, config.rank_v)
        self.w_b_k = self.new_b(init, config.rank_k)
        if not config.shared_kv_b:
            self.w_b_v = self.new_b(init, config.rank_v)

    def new_a(self, init: Initializer, rank: int) -> nnx.Param:
        """Parameters of the head factors of the queries, the keys or the values."""
        heads = self.config.num_heads
        return self._new_factor(
            init, heads, rank, "heads", view=(heads, rank), contextual=self.config.contextual_a
        )

    def new_b(self, init: Initializer, rank: int, dim: int | None = None) -> nnx.Param:
        """Parameters of the feature factors, of `dim` features each, default b_dim."""
        dim = self.config.b_dim if dim is None else dim
        return self._new_factor(
            init, dim, rank, "head_dim", view=(rank, dim), contextual=self.config.contextual_b
        )

    def _new_factor(
        self,
        init: Initializer,
        size: int,
        rank: int,
        axis: str,
        *,
        view: tuple[int, int],
        contextual: bool,
    ) -> nnx.Param:
        d_model = self.w_o.shape[-1]
        bound = INITS[self.config.init](d_model, *view)
        if contextual:
            return init.uniform(bound, (d_model, rank, size), "d_model", "rank", axis)
        # with the variance that a factor map gives of the block's normed hidden state
        return init.uniform(bound * math.sqrt(d_model), (rank, size), "rank", axis)

    def factor(self, x: Float[Array, "B T d_model"], w: nnx.Param) -> Float[Array, "*B_T R size"]:
        """A factor of each token, or, of a factor that is the same for all, that one."""
        weight = self.weight(w)
        if weight.ndim == 2:
            return weight
        return checkpoint_name(jnp.einsum("btd,drs->btrs", x, weight), PROJECTION)

    def head_factor(
        self, x: Float[Array, "B T d_model"], w: nnx.Param, activation: str
    ) -> Float[Array, "*B_T R H"]:
        """A head factor, its nonlinearity applied."""
        a = self.factor(x, w)
        return ACTIVATIONS[activation](at_least_float32(a)).astype(a.dtype)

    def query(
        self, x: Float[Array, "B T d_model"], positions: Int[Array, "B T"]
    ) -> TPAQuery | Float[Array, "B T H D"]:
        """The rotated queries of tokens at the given positions."""
        raise NotImplementedError

    def entry(self, x: Float[Array, "B T d_model"], positions: Int[Array, "B T"]) -> TPAEntry:
        """What is cached of each token: the factors that depend on it, b_k rotated unless that is
        done on reading.
        """
        c = self.config
        a_k, a_v = (
            self.head_factor(x, self.w_a_k, c.activation_k),
            self.head_factor(x, self.w_a_v, c.activation_v),
        )
        b_k = self.factor(x, self.w_b_k)
        b_v = None if c.shared_kv_b else self.factor(x, self.w_b_v)
        if not c.keys_rotated_when_read:
            b_k = self.rope(b_k, positions)  # eq. 3.5: once, before it is cached
        return TPAEntry(
            *(f if f is not None and f.ndim == 4 else None for f in (a_k, b_k, a_v, b_v))
        )

    def project(
        self, x: Float[Array, "B T d_model"], positions: Int[Array, "B T"]
    ) -> tuple[Any, Any]:
        return self.query(x, positions), self.entry(x, positions)

    def fixed_factors(self) -> FixedFactors:
        """The factors that are the same for all tokens, b_k before RoPE."""
        c, fixed = self.config, FixedFactors()
        if not c.contextual_a:
            fixed = fixed._replace(a_k=self.weight(self.w_a_k), a_v=self.weight(self.w_a_v))
        if not c.contextual_b:
            b_v = None if c.shared_kv_b else self.weight(self.w_b_v)
            fixed = fixed._replace(b_k=self.weight(self.w_b_k), b_v=b_v)
        return fixed

    @property
    def late_rope(self) -> RoPE | None:
        """RoPE, where keys are rotated when they are read."""
        return self.rope if self.config.keys_rotated_when_read else None

    def key_value_factors(self, entry: Any, positions: Int[Array, "#B T"]) -> TPAEntry:
        """The factors that eq. 3.1 combines, of the tokens of an entry."""
        return key_value_factors(entry, self.fixed_factors(), self.late_rope, positions)

    def attend(
        self,
        query: Any,
        entry: Any,
        positions: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"] | Segments | None,
    ) -> Float[Array, "B T H D"]:
        query = combine(*query) if isinstance(query, TPAQuery) else query
        factors: Any = self.key_value_factors(entry, positions)  # complete
        a_k, b_k, a_v, b_v = factors
        return self.causal_attention(query, combine(a_k, b_k), combine(a_v, b_v), segment_ids)

    def __call__(
        self,
        x: Float[Array, "B T d_model"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | Segments | None = None,
    ) -> tuple[Float[Array, "B T d_model"], Any]:
        if not self.config.linear or not worth_copying_weights(x):
            return super().__call__(x, positions, segment_ids)
        rows, products = self.joined_factors(x)
        (a_k, b_k), (a_v, b_v) = (factors(rows, products[name]) for name in "kv")
        entry = TPAEntry(a_k, self.rope(b_k, positions), a_v, b_v)
        if sequence.sequence_shards() == 1:
            *query, key, value = self._expanded(rows, positions, *products.values())
        else:
            # along a sequence split over devices the factors of keys and values travel
            start, stop = products["k"].offset_a, products["v"].stop
            query = (
                self._expanded(rows[..., :start], positions, products["q"])
                if "q" in products
                else []
            )
            keys_values, all_positions, segment_ids = sequence.gather_sequence(
                (rows[..., start:stop], positions, segment_ids)
            )
            key, value = self._expanded(
                keys_values, all_positions, *(products[name].without_first(start) for name in "kv")
            )
        dense: Any = query[0] if query else self.query(x, positions)
        return self.output(self.causal_attention(dense, key, value, segment_ids)), entry

    def _expanded(
        self, rows: Float[Array, "B T W"], positions: Int[Array, "B T"], *products: Product
    ) -> list[Float[Array, "B T H D"]]:
        cos, sin = self.rope.tables(positions, self.config.head_dim)
        return expand(rows, cos, sin, products)

    def joined_factors(
        self, x: Float[Array, "B T d_model"]
    ) -> tuple[Float[Array, "B T W"], dict[str, Product]]:
        """All factors of each token in one row, from one matrix product, and where those of q, k
        and v lie in it.

        What the query needs comes first, then what keys and values need.
        """
        heads = self.w_a_k.shape[-1]
        weights = {}  # (side, name) -> a factor map
        for names in ("q", "kv") if hasattr(self, "w_a_q") else ("kv",):
            for side, name in itertools.product("ab", names):
                w = self.weight(getattr(self, f"w_{side}_{name}"))
                room = head_room(heads) - heads if side == "a" else 0
                weights[side, name] = jnp.pad(w, ((0, 0), (0, 0), (0, room)))
        blocks = [w.reshape(w.shape[0], -1) for w in weights.values()]
        starts = dict(
            zip(
                weights, itertools.accumulate((w.shape[1] for w in blocks), initial=0), strict=False
            )
        )
        products = {}
        for _, name in (key for key in weights if key[0] == "a"):
            _, rank, dim = weights["b", name].shape
            products[name] = Product(
                starts["a", name], starts["b", name], rank, heads, dim, rotate=name != "v"
            )
        rows = x @ pad_columns(jnp.concatenate(blocks, axis=1))
        return checkpoint_name(rows, PROJECTION), products

    def empty_cache(self, batch: int, max_length: int) -> TPACache:
        return TPACache.from_factors(
            *self.empty_entry(batch, max_length), fixed=self.fixed_factors(), rope=self.late_rope
        )

    def decode(
        self, query: Any, cache: TPACache, lengths: Int[Array, "B"]
    ) -> Float[Array, "B N H D"]:
        out: Any = decode(query, cache, lengths, fixed=self.fixed_factors())
        return out
