"""Tensor Product Attention with contextual factors for queries, keys and values (section 3)."""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from t6jax.attention.base import Attention, AttentionConfig
from t6jax.errors import InputError
from t6jax.layers import parameter, uniform
from t6jax.ops.causal_attention import causal_attention
from t6jax.ops.decode import decode
from t6jax.ops.rope import RoPE
from t6jax.ops.tensor_product import combine
from t6jax.ops.tpa_cache import TPACache, TPAEntry, TPAQuery

# Bounds of the uniform start for a factor map of R vectors of `size` features each.
INITS = {
    # Xavier on the weight matrix, as the paper's text has it (appendix I): n_in = d_model, n_out = R * size
    "xavier": lambda d_model, rank, size: math.sqrt(6 / (d_model + rank * size)),
    # Xavier on the three-axis view (d_model, size, R), as the published code has it
    "xavier_three_axes": lambda d_model, rank, size: math.sqrt(6 / (rank * (size + d_model))),
}


@dataclasses.dataclass(frozen=True)
class TPAConfig(AttentionConfig):
    """rank_q, rank_k, rank_v: R_Q, R_K, R_V of eq. 3.1. init: a name in INITS."""

    name: ClassVar[str] = "tpa"

    rank_q: int = 6
    rank_k: int = 2
    rank_v: int = 2
    init: str = "xavier"

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("rank_q", "rank_k", "rank_v")
        if self.init not in INITS:
            raise InputError(f"attention.init must be one of {', '.join(INITS)}; got {self.init!r}")

    @property
    def cached_numbers_per_token(self) -> int:
        return (self.rank_k + self.rank_v) * (self.num_heads + self.head_dim)

    def parameter_count(self, d_model: int) -> int:
        factors = (self.rank_q + self.rank_k + self.rank_v) * (self.num_heads + self.head_dim)
        return d_model * (factors + self.num_heads * self.head_dim) + self.head_norm * self.head_dim

    def build(self, d_model: int, *, rope: RoPE, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs) -> "TPA":
        return TPA(self, d_model, rope=rope, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


class TPA(Attention):
    """Queries, keys and values are sums of R outer products a (x) b of factors linear in the hidden state (eq. 3.1)."""

    def __init__(
        self,
        config: TPAConfig,
        d_model: int,
        *,
        rope: RoPE,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        super().__init__(config, d_model, rope=rope, dtype=dtype, param_dtype=param_dtype)

        def factor_map(rank: int, size: int, axis: str) -> nnx.Param:
            bound = INITS[config.init](d_model, rank, size)
            return parameter(uniform(rngs.params(), bound, (d_model, rank, size), param_dtype), "d_model", "rank", axis)

        heads, features = (config.num_heads, "heads"), (config.head_dim, "head_dim")
        self.w_a_q, self.w_b_q = factor_map(config.rank_q, *heads), factor_map(config.rank_q, *features)
        self.w_a_k, self.w_b_k = factor_map(config.rank_k, *heads), factor_map(config.rank_k, *features)
        self.w_a_v, self.w_b_v = factor_map(config.rank_v, *heads), factor_map(config.rank_v, *features)

    def project(self, x: Float[Array, "B T d_model"], positions: Int[Array, "B T"]) -> tuple[TPAQuery, TPAEntry]:
        factor = lambda w: jnp.einsum("btd,drs->btrs", x, w[...].astype(self.dtype))
        query = TPAQuery(factor(self.w_a_q), self.rope(factor(self.w_b_q), positions))
        b_k = self.rope(factor(self.w_b_k), positions)  # eq. 3.5: rotated once, before it is cached
        return query, TPAEntry(factor(self.w_a_k), b_k, factor(self.w_a_v), factor(self.w_b_v))

    def attend(self, query: TPAQuery, entry: TPAEntry, segment_ids: Int[Array, "B T"] | None) -> Float[Array, "B T H D"]:
        q, k, v = combine(*query), combine(entry.a_k, entry.b_k), combine(entry.a_v, entry.b_v)
        return causal_attention(q, k, v, segment_ids=segment_ids)

    def empty_cache(self, batch: int, max_length: int) -> TPACache:
        c = self.config
        return TPACache.empty(
            batch,
            max_length,
            num_heads=c.num_heads,
            rank_k=c.rank_k,
            rank_v=c.rank_v,
            key_dim=c.head_dim,
            value_dim=c.head_dim,
            dtype=self.dtype,
        )

    def decode(self, query: TPAQuery, cache: TPACache, lengths: Int[Array, "B"]) -> Float[Array, "B N H D"]:
        return decode(query, cache, lengths)
