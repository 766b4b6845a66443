"""Multi-matrix factorization attention: MQA of wide heads with low-rank queries (appendix H.4)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from t6jax.attention.base import Initializer
from t6jax.attention.dense import Dense, DenseConfig
from t6jax.ops.names import PROJECTION


class MFA(Dense):
    """Q_i = X W^DQ W_i^UQ, one shared head of keys and values of the same width d_c.

    Appendix H.4 does not speak of positions: as in MQA, RoPE rotates the queries of each head and
    the shared keys.
    """

    def new_query(self, init: Initializer) -> None:
        d_model, heads, d_c = self.w_o.shape[-1], self.config.num_heads, self.config.head_dim
        self.w_dq = init.linear((d_model, d_c), "d_model", "latent")
        self.w_uq = init.linear((d_c, heads, d_c), "latent", "heads", "head_dim")

    def query(self, x: Float[Array, "B T d_model"]) -> Float[Array, "B T H D"]:
        latent = checkpoint_name(x @ self.weight(self.w_dq), PROJECTION)
        return jnp.einsum("btc,che->bthe", latent, self.weight(self.w_uq))


@dataclasses.dataclass(frozen=True)
class MFAConfig(DenseConfig):
    """head_dim: d_c."""

    name: ClassVar[str] = "mfa"
    module: ClassVar[type[MFA]] = MFA

    @property
    def groups(self) -> int:
        return 1

    def query_parameter_count(self, d_model: int) -> int:
        return d_model * self.head_dim + self.num_heads * self.head_dim**2
