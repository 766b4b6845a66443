"""On an NVIDIA GPU every mechanism's bfloat16 stays within its precision, in cuDNN attention and in
decoding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t6jax.attention import MECHANISMS
from tests.attention.cases import arange_positions, build, case, hidden_states

# cuDNN takes head widths that are multiples of 8: MLA's queries are 64 + 32 wide and its values 64
SIZES = {
    "tpa_order3": {"dim_b": 8, "dim_c": 8},
    "mla": {"kv_rank": 64, "q_rank": 48, "rope_dim": 32},
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_bfloat16_forward_and_decode_are_within_its_precision_of_float32(name):
    config = case(name, num_heads=6, head_dim=64, **SIZES.get(name, {}))
    d_model, tokens = 128, 66
    graph, state = nnx.split(build(config, dtype="bfloat16", d_model=d_model, scale=0.7))
    x = hidden_states(2, tokens, dtype="bfloat16", d_model=d_model)

    @jax.jit
    def both(state, x):
        module = nnx.merge(graph, state)
        full, entry = module(x, arange_positions(x))
        cache = module.empty_cache(2, tokens)
        cache = cache.append(
            jax.tree.map(lambda e: e[:, : tokens - 2], entry), jnp.zeros(2, jnp.int32)
        )
        decoded = module.extend(x[:, tokens - 2 :], cache, jnp.full(2, tokens))[0]
        grad = jax.grad(
            lambda x: jnp.sum(jnp.square(module(x, arange_positions(x))[0].astype(jnp.float32)))
        )(x)
        return full, decoded, grad

    assert "cudnn" in both.lower(state, x).as_text()
    full, decoded, grad = (np.asarray(y, np.float32) for y in both(state, x))
    wide = nnx.merge(
        nnx.split(build(config, d_model=d_model))[0],
        jax.tree.map(lambda p: p.astype(jnp.float32), state),
    )
    x = x.astype(jnp.float32)
    exact = np.asarray(jax.jit(lambda x: wide(x, arange_positions(x))[0])(x))
    # the bound of tests/attention/test_precision.py: 10 roundings to 8 bits, doubled
    norm = np.linalg.norm
    assert norm(full - exact) < 20 * 2**-9 * norm(exact)
    assert norm(decoded - exact[:, -2:]) < 20 * 2**-9 * norm(exact[:, -2:])
    assert np.all(np.isfinite(grad))
