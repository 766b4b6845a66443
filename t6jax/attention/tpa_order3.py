"""Third-order TPA: the features of each rank are themselves a tensor product, a (x) vec(b (x) c)
(appendix E).
"""

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t6jax.attention.base import Initializer
from t6jax.attention.tpa import TPA, TPAConfig
from t6jax.errors import InputError
from t6jax.fields import Range
from t6jax.ops.decode import decode
from t6jax.ops.tensor_product import vec
from t6jax.ops.token_cache import TokenCache
from t6jax.ops.tpa_cache import TPACache
from t6jax.ops.tpa_factors import TPAEntry, TPAQuery


class Order3Entry(NamedTuple):
    """What is cached of each token: A and B factors as in second order, and the C factors.

    b_v and c_v are None where the values share the keys' B and C factors.
    """

    a_k: Float[Array, "B T R_K H"]
    b_k: Float[Array, "B T R_K D_b"]
    c_k: Float[Array, "B T R_K D_c"]
    a_v: Float[Array, "B T R_V H"]
    b_v: Float[Array, "B T R_V D_b"] | None
    c_v: Float[Array, "B T R_V D_c"] | None


class TPAOrder3(TPA):
    """Second-order TPA whose B factors are vec(b (x) c). RoPE on b alone is RoPE on the whole
    (Theorem E.1).
    """

    config: "TPAOrder3Config"

    def __init__(self, config: "TPAOrder3Config", d_model: int, init: Initializer, **options: Any):
        super().__init__(config, d_model, init, **options)
        self.w_c_q, self.w_c_k = (
            self.new_b(init, rank, config.dim_c) for rank in (config.rank_q, config.rank_k)
        )
        if not config.shared_kv_b:
            self.w_c_v = self.new_b(init, config.rank_v, config.dim_c)

    def query(self, x: Float[Array, "B T d_model"], positions: Int[Array, "B T"]) -> TPAQuery:
        a, b = super().query(x, positions)
        return TPAQuery(a, vec(b, self.factor(x, self.w_c_q)))

    def entry(self, x: Float[Array, "B T d_model"], positions: Int[Array, "B T"]) -> Order3Entry:
        c_v = None if self.config.shared_kv_b else self.factor(x, self.w_c_v)
        second_order: Any = super().entry(x, positions)
        a_k, b_k, a_v, b_v = second_order
        return Order3Entry(a_k, b_k, self.factor(x, self.w_c_k), a_v, b_v, c_v)

    def key_value_factors(self, entry: Order3Entry, positions: Int[Array, "#B T"]) -> TPAEntry:
        second_order = TPAEntry(entry.a_k, entry.b_k, entry.a_v, entry.b_v)
        factors: Any = super().key_value_factors(second_order, positions)  # complete
        a_k, b_k, a_v, b_v = factors
        c_v = entry.c_k if entry.c_v is None else entry.c_v
        return TPAEntry(a_k, vec(b_k, entry.c_k), a_v, vec(b_v, c_v))

    def empty_cache(self, batch: int, max_length: int) -> TokenCache:
        return TokenCache(self.empty_entry(batch, max_length))

    def decode(
        self, query: TPAQuery, cache: TokenCache, lengths: Int[Array, "B"]
    ) -> Float[Array, "B N H D"]:
        # b (x) c is formed for the step, one layer at a time, and not kept
        factors = self.key_value_factors(cache.tokens, jnp.arange(cache.max_length)[None])
        out: Any = decode(query, TPACache.from_factors(*factors), lengths)
        return out


@dataclasses.dataclass(frozen=True)
class TPAOrder3Config(TPAConfig):
    """d_b d_c = d_h. shared_kv_b shares b and c alike."""

    name: ClassVar[str] = "tpa_order3"
    module: ClassVar[type[TPAOrder3]] = TPAOrder3
    rotated: ClassVar[str] = "dim_b"

    dim_b: Annotated[int, Range(low=1), "d_b, even: RoPE rotates it."] = 8
    dim_c: Annotated[int, Range(low=1), "d_c."] = 8

    def __post_init__(self):
        super().__post_init__()
        if self.dim_b * self.dim_c != self.head_dim:
            raise InputError(
                f"model.attention.dim_b x dim_c must be head_dim={self.head_dim}; "
                f"got {self.dim_b} x {self.dim_c} = {self.dim_b * self.dim_c}"
            )

    @property
    def b_dim(self) -> int:
        return self.dim_b

    @property
    def linear(self) -> bool:
        return False  # its features are a product of two maps

    @property
    def b_numbers(self) -> int:
        return self.dim_b + self.dim_c
