"""Multi-head latent attention, of DeepSeek-V2 and V3 (appendix H.3)."""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from t6jax.attention.base import Attention, AttentionConfig, Initializer
from t6jax.fields import Range
from t6jax.ops.attention import Segments
from t6jax.ops.decode.dense import decode_dense
from t6jax.ops.names import KEY_VALUE_PROJECTION, PROJECTION
from t6jax.ops.residual import rms_norm
from t6jax.ops.token_cache import TokenCache

LATENT_EPSILON = 1e-6


class MLA(Attention):
    """Queries, and keys with values, from two compressed latents; a further part of queries and
    keys carries RoPE.

    As DeepSeek and the published code have it, and the paper leaves out, the latents C^Q and C^KV
    are RMS-normed with weights. What is cached, d_c + d_h^R numbers a token, is the normed C^KV
    followed by the rotated K^R.

    Query: [B, T, H, d_h + d_h^R], a head's Q^C followed by its rotated Q^R.
    """

    config: "MLAConfig"

    def __init__(self, config: "MLAConfig", d_model: int, init: Initializer, **options: Any):
        super().__init__(config, d_model, init, **options)
        c = config
        heads = ("latent", "heads", "head_dim")
        self.w_dq = init.linear((d_model, c.q_rank), "d_model", "latent")
        self.q_norm = init.full(1, (c.q_rank,), "latent")
        self.w_uq = init.linear((c.q_rank, c.num_heads, c.head_dim), *heads)
        self.w_qr = init.linear((c.q_rank, c.num_heads, c.rope_dim), *heads)
        self.w_dkv = init.linear((d_model, c.kv_rank), "d_model", "latent")
        self.kv_norm = init.full(1, (c.kv_rank,), "latent")
        self.w_uk = init.linear((c.kv_rank, c.num_heads, c.head_dim), *heads)
        self.w_uv = init.linear((c.kv_rank, c.num_heads, c.head_dim), *heads)
        self.w_kr = init.linear((d_model, c.rope_dim), "d_model", "head_dim")

    def project(
        self, x: Float[Array, "B T d_model"], positions: Int[Array, "B T"]
    ) -> tuple[Array, Array]:
        c_q, c_kv, k_r = checkpoint_name(
            tuple(x @ self.weight(w) for w in (self.w_dq, self.w_dkv, self.w_kr)), PROJECTION
        )
        c_q = rms_norm(c_q, LATENT_EPSILON, self.q_norm[...])
        q_c, q_r = (
            checkpoint_name(jnp.einsum("btc,che->bthe", c_q, self.weight(w)), PROJECTION)
            for w in (self.w_uq, self.w_qr)
        )
        c_kv = rms_norm(c_kv, LATENT_EPSILON, self.kv_norm[...])
        k_r = self.rope(k_r, positions)
        return jnp.concatenate([q_c, self.rope(q_r, positions)], axis=-1), jnp.concatenate(
            [c_kv, k_r], axis=-1
        )

    def attend(
        self,
        query: Array,
        entry: Array,
        positions: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"] | Segments | None,
    ) -> Float[Array, "B T H D"]:
        c_kv, k_r = jnp.split(entry, [self.config.kv_rank], axis=-1)
        k_c, v = (
            checkpoint_name(jnp.einsum("btc,che->bthe", c_kv, self.weight(w)), KEY_VALUE_PROJECTION)
            for w in (self.w_uk, self.w_uv)
        )
        k_r = jnp.broadcast_to(k_r[:, :, None], (*k_c.shape[:-1], k_r.shape[-1]))
        key = jnp.concatenate([k_c, k_r], axis=-1)
        return self.causal_attention(query, key, v, segment_ids)

    def decode(
        self, query: Array, cache: TokenCache, lengths: Int[Array, "B"]
    ) -> Float[Array, "B N H D"]:
        """Eq. H.2: W^UK goes to the query and W^UV to the output, and all heads attend over the
        cache as it is, as in MQA.
        """
        q_c, q_r = jnp.split(query, [self.config.head_dim], axis=-1)
        q_c = jnp.einsum("bnhe,che->bnhc", q_c, self.weight(self.w_uk))
        latents = cache.tokens[:, :, None]
        # K^R is summed as if it were a value, and cut off: cheaper than a copy of the cache without
        # it
        out = decode_dense(
            jnp.concatenate([q_c, q_r], axis=-1),
            latents,
            latents,
            lengths,
            scale=self.config.query_dim**-0.5,
        )
        return jnp.einsum("bnhc,che->bnhe", out[..., : self.config.kv_rank], self.weight(self.w_uv))


@dataclasses.dataclass(frozen=True)
class MLAConfig(AttentionConfig):
    """Keys of multi-head latent attention."""

    name: ClassVar[str] = "mla"
    module: ClassVar[type[MLA]] = MLA
    rotated: ClassVar[str] = "rope_dim"

    kv_rank: Annotated[int, Range(low=1), "d_c, the width of the latent C^KV."] = 512
    q_rank: Annotated[int, Range(low=1), "d_c', the width of the latent C^Q."] = 1024
    rope_dim: Annotated[
        int, Range(low=1), "d_h^R, even: the features of queries and keys that carry RoPE."
    ] = 32

    @property
    def query_dim(self) -> int:
        """d_h + d_h^R."""
        return self.head_dim + self.rope_dim

    @property
    def cached_numbers_per_token(self) -> int:
        return self.kv_rank + self.rope_dim

    def input_parameter_count(self, d_model: int) -> int:
        query = self.q_rank * (d_model + self.num_heads * self.query_dim)
        key_value = d_model * self.rope_dim + self.kv_rank * (
            d_model + 2 * self.num_heads * self.head_dim
        )
        return query + key_value + self.q_rank + self.kv_rank  # the last two: the norms' weights
