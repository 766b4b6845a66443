"""Every mechanism with every flag, small, for the tests to run over."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t6jax.attention import MECHANISMS, Attention, AttentionConfig
from t6jax.ops.rope import RoPE

D_MODEL = 24


def case(name: str, **settings) -> AttentionConfig:
    """A small instance of a mechanism; head counts and ranks that divide nothing where the
    mechanism lets them.
    """
    defaults = {"num_heads": 5, "head_dim": 6} | {
        "tpa": {"rank_q": 3, "rank_k": 2, "rank_v": 1},
        "tpa_kvonly": {"rank_k": 1, "rank_v": 3},
        "tpa_nonctx_a": {"rank_q": 3, "rank_k": 2, "rank_v": 1},
        "tpa_nonctx_b": {"rank_q": 3, "rank_k": 2, "rank_v": 1},
        "tpa_order3": {"rank_q": 3, "rank_k": 2, "rank_v": 1, "dim_b": 2, "dim_c": 3},
        "gqa": {"num_heads": 6, "num_kv_heads": 3},
        "mla": {"kv_rank": 7, "q_rank": 9, "rope_dim": 4},
    }.get(name, {})
    return MECHANISMS[name](**(defaults | settings))


SHARED = {"rank_k": 2, "rank_v": 2, "shared_kv_b": True}
NONLINEAR = {"activation_q": "sigmoid", "activation_k": "softmax", "activation_v": "sigmoid"}

CASES = (
    {name: case(name) for name in MECHANISMS}
    | {
        "tpa rank 1": case("tpa", rank_q=1, rank_k=1, rank_v=1, num_heads=1, head_dim=2),
        "tpa shared B": case("tpa", **SHARED),
        "tpa nonlinear": case("tpa", **NONLINEAR),
        "tpa_kvonly shared B": case("tpa_kvonly", **SHARED),
        "tpa_kvonly nonlinear": case("tpa_kvonly", activation_k="sigmoid", activation_v="softmax"),
        "tpa_nonctx_a shared B": case("tpa_nonctx_a", **SHARED),
        "tpa_nonctx_b shared B": case("tpa_nonctx_b", **SHARED),
        "tpa_nonctx_b nonlinear": case("tpa_nonctx_b", **NONLINEAR),
        "tpa_order3 shared B": case("tpa_order3", **SHARED),
        "tpa_order3 nonlinear": case("tpa_order3", **NONLINEAR),
    }
    | {
        f"{name} head norm": case(name, head_norm=True)
        for name in ("tpa", "tpa_kvonly", "gqa", "mla", "mfa")
    }
)


def build(
    config: AttentionConfig,
    *,
    dtype: str = "float32",
    d_model: int = D_MODEL,
    scale: float = 1.0,
    seed: int = 0,
) -> Attention:
    """The mechanism's module with normal parameters, W^O and norms included, that keep activations
    of order `scale`.
    """
    make = lambda: config.build(
        d_model, rope=RoPE(), dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0)
    )
    graph, state = nnx.split(nnx.eval_shape(make))
    random = np.random.default_rng(seed)
    # fan-in is the first axis; of W^O, where a little more does no harm, its first two
    spread = lambda x: scale / (1 if x.ndim < 3 else x.shape[0]) ** 0.5
    draw = lambda x: jnp.asarray(spread(x) * random.standard_normal(x.shape), x.dtype)
    return nnx.merge(graph, jax.tree.map(draw, state))


def hidden_states(
    batch: int, tokens: int, *, dtype: str = "float32", d_model: int = D_MODEL, seed: int = 1
) -> jax.Array:
    """What a block's norm hands to attention: entries of order 1."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, tokens, d_model)), dtype)


def arange_positions(x: jax.Array) -> jax.Array:
    """0, 1, ... for each sequence of x [B, T, d_model]."""
    return jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
