"""Tensor Product Attention with contextual factors for queries, keys and values (section 3)."""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t6jax.attention.base import Initializer
from t6jax.attention.factored import ACTIVATIONS, Factored, FactoredConfig
from t6jax.fields import OneOf, Range
from t6jax.ops.tpa_factors import TPAQuery


class TPA(Factored):
    """Queries, keys and values are sums of R outer products a (x) b of factors linear in the hidden
    state (eq. 3.1).
    """

    config: "TPAConfig"

    def __init__(self, config: "TPAConfig", d_model: int, init: Initializer, **options: Any):
        super().__init__(config, d_model, init, **options)
        self.w_a_q, self.w_b_q = self.new_a(init, config.rank_q), self.new_b(init, config.rank_q)

    def query(self, x: Float[Array, "B T d_model"], positions: Int[Array, "B T"]) -> TPAQuery:
        a, b = self.head_factor(x, self.w_a_q, self.config.activation_q), self.factor(x, self.w_b_q)
        a, b = (jnp.broadcast_to(f, (*positions.shape, *f.shape[-2:])) for f in (a, b))
        return TPAQuery(a, self.rope(b, positions))


@dataclasses.dataclass(frozen=True)
class TPAConfig(FactoredConfig):
    """Queries have factors too."""

    name: ClassVar[str] = "tpa"
    module: ClassVar[type[TPA]] = TPA

    rank_q: Annotated[int, Range(low=1), "R_Q of eq. 3.1."] = 6
    activation_q: Annotated[str, OneOf(tuple(ACTIVATIONS)), "As activation_k, for the queries."] = (
        "none"
    )

    def query_parameter_count(self, d_model: int) -> int:
        return self.factor_parameter_count(d_model, self.rank_q)
