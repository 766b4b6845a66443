"""What the decode kernels are given of a cache, run by the Triton kernel under its interpreter."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.decode import triton
from t6jax.ops.decode import kernels, xla
from t6jax.ops.rope import RoPE
from t6jax.ops.tpa_cache import TPACache
from t6jax.ops.tpa_factors import FixedFactors
from tests.ops.decode.base import relative_error
from tests.pallas_kernels.conftest import triton_interpreter  # noqa: F401 (a fixture)


@pytest.mark.parametrize("fixed", ["", "a", "b"])
@pytest.mark.usefixtures("triton_interpreter")
def test_fixed_factors_rope_and_scale_reach_the_kernel(fixed, monkeypatch):
    monkeypatch.setattr(triton, "multiprocessors", lambda: 1)  # fewer programs to interpret
    random = np.random.default_rng(0)

    def draw(letter, rank, size):
        shape = (rank, size) if letter == fixed else (2, 9, rank, size)
        return jnp.asarray(random.standard_normal(shape), jnp.bfloat16)

    given = {"a_k": draw("a", 2, 3), "b_k": draw("b", 2, 16)}
    given |= {"a_v": draw("a", 2, 3), "b_v": draw("b", 2, 16)}
    same = FixedFactors(**{name: x for name, x in given.items() if x.ndim == 2})
    tokens = {name: x if x.ndim == 4 else None for name, x in given.items()}
    rope = RoPE() if fixed != "a" else None
    cache = TPACache.from_factors(**tokens, fixed=same, rope=rope)
    query = jnp.asarray(random.standard_normal((2, 1, 3, 16)), jnp.bfloat16)
    arguments = (query, cache, jnp.array([9, 4]), same)
    out, lse = kernels.decode("triton", *arguments, scale=0.3)
    want, want_lse = xla.decode(*arguments, scale=0.3)
    # the query, the weights times a_v and the output are rounded to 8 bits
    assert relative_error(out, want) < 4 * 2**-8
    assert relative_error(lse, want_lse) < 2 * 2**-8
