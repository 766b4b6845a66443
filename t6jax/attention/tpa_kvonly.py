"""TPA-KVonly: dense queries, factored keys and values (appendix I)."""

import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from t6jax.attention.base import Initializer
from t6jax.attention.factored import Factored, FactoredConfig
from t6jax.ops.names import PROJECTION


class TPAKVOnly(Factored):
    """Q_t = W^Q x_t, K and V in factors."""

    def __init__(self, config: "TPAKVOnlyConfig", d_model: int, init: Initializer, **options: Any):
        super().__init__(config, d_model, init, **options)
        shape = (d_model, config.num_heads, config.head_dim)
        # Xavier on the matrix, as in the published code
        bound = math.sqrt(6 / (d_model + config.num_heads * config.head_dim))
        self.w_q = init.uniform(bound, shape, "d_model", "heads", "head_dim")

    def query(
        self, x: Float[Array, "B T d_model"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T H D"]:
        q = jnp.einsum("btd,dhe->bthe", x, self.weight(self.w_q))
        return self.rope(checkpoint_name(q, PROJECTION), positions)


@dataclasses.dataclass(frozen=True)
class TPAKVOnlyConfig(FactoredConfig):
    """No keys of its own: only keys and values have ranks."""

    name: ClassVar[str] = "tpa_kvonly"
    module: ClassVar[type[TPAKVOnly]] = TPAKVOnly

    def query_parameter_count(self, d_model: int) -> int:
        return d_model * self.num_heads * self.head_dim
