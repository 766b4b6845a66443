"""A mechanism in a file of its own, as a user of t6jax writes one: MHA with gated heads,
sigmoid(x W^G) * head.
"""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

import t6jax
from t6jax.attention.dense import Dense, DenseConfig
from t6jax.fields import Range


class Gated(Dense):
    def __init__(self, config, d_model, init, **options: Any):
        super().__init__(config, d_model, init, **options)
        shape = (d_model, config.num_heads, config.head_dim)
        self.w_g = init.linear(shape, "d_model", "heads", "head_dim")

    def project(self, x, positions):
        query, entry = super().project(x, positions)
        logits = jnp.einsum("btd,dhe->bthe", x, self.weight(self.w_g))
        return (query, jax.nn.sigmoid(self.config.gate_scale * logits)), entry

    def attend(self, query, *args, **options):
        query, gate = query
        return gate * super().attend(query, *args, **options)

    def decode(self, query, *args, **options):
        query, gate = query
        return gate * super().decode(query, *args, **options)


@t6jax.register
@dataclasses.dataclass(frozen=True)
class GatedConfig(DenseConfig):
    name: ClassVar[str] = "gated"
    module: ClassVar[type[Gated]] = Gated

    gate_scale: Annotated[float, Range(above=0), "Factor of the gate's logits."] = 1.0

    @property
    def groups(self) -> int:
        return self.num_heads

    def input_parameter_count(self, d_model: int) -> int:
        return super().input_parameter_count(d_model) + d_model * self.num_heads * self.head_dim
