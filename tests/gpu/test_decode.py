"""t6jax.decode on an NVIDIA GPU chooses the kernels where they take the call."""

import jax
import jax.numpy as jnp
import pytest

import t6jax
from tests.gpu.conftest import HOPPER
from tests.ops.decode.base import Case, arguments


def test_the_fastest_that_takes_the_call_is_chosen():
    query, cache, lengths = arguments(Case(room=700, lengths=(0, 333, 700)), jnp.bfloat16)[:3]
    text = lambda *a: jax.jit(t6jax.decode).lower(*a).as_text()
    assert ("mosaic_gpu" in text(query, cache, lengths)) == HOPPER
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (query, cache))
    assert "custom_call" not in text(*wide, lengths), "no kernel takes float32 caches"
    with pytest.raises(NotImplementedError, match="float32"):
        t6jax.decode(*wide, lengths, implementation="mosaic_gpu")
