"""An attention mechanism of your own, in a file of your own: one projection for keys and values.

k_i = RoPE(u_i), v_i = u_i with u_i = W^U_i x. Cached: u, h d_h numbers per token.

usage: python -m examples.add_mechanism
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

import t6jax
from t6jax.attention import Attention, AttentionConfig
from t6jax.ops.attention import causal_attention
from t6jax.ops.decode import decode_dense


class TiedKV(Attention):
    """Multi-head attention whose values are its keys before RoPE."""

    def __init__(self, config, d_model, init, **options):
        super().__init__(config, d_model, init, **options)  # makes W^O
        shape = (d_model, config.num_heads, config.head_dim)
        # the names of the axes are what the config's sharding rules go by
        self.w_q = init.linear(shape, "d_model", "heads", "head_dim")
        self.w_u = init.linear(shape, "d_model", "heads", "head_dim")

    def project(self, x, positions):
        """Hidden states [B, T, d_model] to a query and to what is cached, both [B, T, H, D]."""
        query = jnp.einsum("btd,dhe->bthe", x, self.weight(self.w_q))
        u = jnp.einsum("btd,dhe->bthe", x, self.weight(self.w_u))
        return self.rope(query, positions), u

    def attend(self, query, entry, positions, segment_ids):
        """Causal attention over whole sequences: training and prefill."""
        keys = self.rope(entry, positions)
        return causal_attention(query, keys, entry, segment_ids=segment_ids)

    def decode(self, query, cache, lengths):
        """Attention of new tokens over the cache, which holds the entries of all tokens."""
        u = cache.tokens
        keys = self.rope(u, jnp.arange(cache.max_length)[None])
        return decode_dense(query, keys, u, lengths)


@t6jax.register
@dataclasses.dataclass(frozen=True)
class TiedKVConfig(AttentionConfig):
    """The mechanism's keys in a config; num_heads, head_dim and head_norm are inherited."""

    name: ClassVar[str] = "tied_kv"
    module: ClassVar[type[TiedKV]] = TiedKV

    @property
    def cached_numbers_per_token(self) -> int:
        return self.num_heads * self.head_dim

    def input_parameter_count(self, d_model: int) -> int:
        return 2 * d_model * self.num_heads * self.head_dim  # W^Q and W^U; W^O is counted for all


def main() -> float:
    """Checks the mechanism in a model; returns how far decoding is from a forward pass."""
    config = t6jax.ModelConfig.from_dict(
        {
            "vocab_size": 61,
            "num_layers": 2,
            "d_model": 32,
            "context_length": 16,
            "dtype": "float32",
            "attention": {"name": "tied_kv", "num_heads": 4, "head_dim": 8},
        }
    )
    model = t6jax.T6(config, rngs=nnx.Rngs(0))
    # output projections start at zero, as in the published code: give them values to check with
    w_o = model.blocks.attention.w_o
    w_o[...] = jax.random.normal(jax.random.key(1), w_o.shape) * 0.1

    # the counts are what is there
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert parameters == config.parameter_count
    caches = model.empty_caches(batch=1, max_length=16)
    assert sum(x.size for x in jax.tree.leaves(caches)) == 16 * config.cached_numbers_per_token

    # decoding token by token gives the logits of one forward pass
    tokens = jax.random.randint(jax.random.key(2), (1, 16), 0, config.vocab_size)
    whole = model(tokens)
    difference = 0.0
    for t in range(16):
        logits, caches = model.extend(tokens[:, t : t + 1], jnp.array([t + 1]), caches)
        difference = max(difference, float(jnp.max(jnp.abs(logits[:, 0] - whole[:, t]))))

    # later tokens have no influence
    changed = model(tokens.at[:, 8:].set(0))
    assert jnp.array_equal(changed[:, :8], whole[:, :8])

    print(f"{parameters:,} parameters, {config.cached_numbers_per_token} cached numbers per token")
    print(f"decoding differs from the forward pass by at most {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
