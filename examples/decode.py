"""Decodes with TPA from your own JAX code: a cache of factors that grows by a token per step.

usage: python -m examples.decode
"""

import functools

import jax
import jax.numpy as jnp

import t6jax
from t6jax.ops.rope import RoPE
from t6jax.ops.tensor_product import combine

B, M = 2, 64  # sequences, and the tokens that the cache has room for
H, D, R_Q, R_K, R_V = 8, 32, 6, 2, 2  # heads, features, ranks
D_MODEL = 128
ROPE = RoPE()

# a layer of your own: a map from hidden states to each factor, [d_model, R, size]
SIZES = {"a_q": (R_Q, H), "b_q": (R_Q, D), "a_k": (R_K, H), "b_k": (R_K, D)}
SIZES |= {"a_v": (R_V, H), "b_v": (R_V, D)}


def new_weights(key):
    keys = jax.random.split(key, len(SIZES))
    draw = lambda key, size: jax.random.normal(key, (D_MODEL, *size)) * D_MODEL**-0.5
    return {name: draw(k, size) for k, (name, size) in zip(keys, SIZES.items(), strict=True)}


def project(weights, x, positions):
    """Hidden states [B, T, d_model] to the query's factors and the cache entry's."""
    f = {name: jnp.einsum("btd,drs->btrs", x, w) for name, w in weights.items()}
    query = t6jax.TPAQuery(f["a_q"], ROPE(f["b_q"], positions))
    return query, t6jax.TPAEntry(f["a_k"], ROPE(f["b_k"], positions), f["a_v"], f["b_v"])


@functools.partial(jax.jit, donate_argnames="cache")  # donated: the cache is updated in place
def step(weights, cache, lengths, x):
    """One new token per sequence, x [B, d_model]: appends it and attends."""
    query, entry = project(weights, x[:, None], lengths[:, None])
    cache = cache.append(entry, lengths)
    return t6jax.decode(query, cache, lengths + 1)[:, 0], cache, lengths + 1


def full_attention(weights, x):
    """The same layer over whole sequences x [B, T, d_model], by dense keys and values."""
    T = x.shape[1]
    query, (a_k, b_k, a_v, b_v) = project(weights, x, jnp.broadcast_to(jnp.arange(T), (B, T)))
    q, k, v = combine(*query), combine(a_k, b_k), combine(a_v, b_v)
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def main() -> float:
    """Decodes 16 tokens one by one; returns the largest difference from attention over all."""
    weights = new_weights(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (B, 16, D_MODEL))
    cache = t6jax.TPACache.empty(
        B, M, num_heads=H, rank_k=R_K, rank_v=R_V, key_dim=D, value_dim=D, dtype=jnp.float32
    )
    lengths, outputs = jnp.zeros(B, jnp.int32), []
    for t in range(x.shape[1]):
        out, cache, lengths = step(weights, cache, lengths, x[:, t])
        outputs.append(out)
    error = float(jnp.max(jnp.abs(jnp.stack(outputs, 1) - full_attention(weights, x))))
    print(f"16 tokens decoded; largest difference from attention over the whole: {error:.1e}")
    return error


if __name__ == "__main__":
    main()
