"""What MHA, GQA, MQA and MFA share: keys and values of G heads, each serving h/G query heads
(sections 2.2, H.1, H.2).
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from t6jax.attention.base import Attention, AttentionConfig, Initializer
from t6jax.ops.attention import Segments
from t6jax.ops.decode.dense import decode_dense
from t6jax.ops.names import PROJECTION
from t6jax.ops.token_cache import TokenCache
from t6jax.parallel import placement


class KeysValues(NamedTuple):
    """What is cached of each token, RoPE already applied to the keys."""

    k: Float[Array, "B T G D"]
    v: Float[Array, "B T G D"]


class Dense(Attention):
    """Q_i = X W_i^Q, K_g = X W_g^K, V_g = X W_g^V; head i attends with the keys and values of group
    g(i).
    """

    config: "DenseConfig"

    def __init__(self, config: "DenseConfig", d_model: int, init: Initializer, **options: Any):
        super().__init__(config, d_model, init, **options)
        shape = (d_model, config.groups, config.head_dim)
        axis = "heads" if config.groups == config.num_heads else "kv_heads"
        self.w_k, self.w_v = (init.linear(shape, "d_model", axis, "head_dim") for _ in range(2))
        self.new_query(init)

    def new_query(self, init: Initializer) -> None:
        """Makes the parameters of the queries."""
        shape = (self.w_o.shape[-1], self.config.num_heads, self.config.head_dim)
        self.w_q = init.linear(shape, "d_model", "heads", "head_dim")

    def query(self, x: Float[Array, "B T d_model"]) -> Float[Array, "B T H D"]:
        """The queries before RoPE."""
        return jnp.einsum("btd,dhe->bthe", x, self.weight(self.w_q))

    def project(
        self, x: Float[Array, "B T d_model"], positions: Int[Array, "B T"]
    ) -> tuple[Array, KeysValues]:
        k, v = (jnp.einsum("btd,dge->btge", x, self.weight(w)) for w in (self.w_k, self.w_v))
        q, k, v = checkpoint_name((self.query(x), k, v), PROJECTION)
        return self.rope(q, positions), KeysValues(self.rope(k, positions), v)

    def attend(
        self,
        query: Array,
        entry: KeysValues,
        positions: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"] | Segments | None,
    ) -> Float[Array, "B T H D"]:
        k, v = entry
        c = self.config
        if 1 < k.shape[2] == c.groups < c.num_heads and placement.mesh_axis(self.w_o, "heads"):
            # some of the heads, all of the groups: each head takes its own
            head = placement.shard_start(self.w_o, "heads") + jnp.arange(query.shape[2])
            group = jnp.minimum(head * c.groups // c.num_heads, c.groups - 1)
            k, v = k[:, :, group], v[:, :, group]
        return self.causal_attention(query, k, v, segment_ids)

    def decode(
        self, query: Array, cache: TokenCache, lengths: Int[Array, "B"]
    ) -> Float[Array, "B N H D"]:
        return decode_dense(query, cache.tokens.k, cache.tokens.v, lengths)


@dataclasses.dataclass(frozen=True)
class DenseConfig(AttentionConfig):
    """A mechanism says how many heads of keys and values there are."""

    module: ClassVar[type[Dense]] = Dense

    @property
    @abc.abstractmethod
    def groups(self) -> int:
        """G, the heads of keys and values."""

    @property
    def cached_numbers_per_token(self) -> int:
        return 2 * self.groups * self.head_dim

    def input_parameter_count(self, d_model: int) -> int:
        return self.query_parameter_count(d_model) + 2 * d_model * self.groups * self.head_dim

    def query_parameter_count(self, d_model: int) -> int:
        """Parameters of the queries."""
        return d_model * self.num_heads * self.head_dim
