"""The Triton kernel without a GPU: that it compiles for Ampere, Ada and Hopper, and what is refused. Numbers: tests/gpu."""

import sys

import jax.numpy as jnp
import pytest

from pallas_kernels import flash_tpa_triton
from pallas_kernels.tpa_cache import CacheLayout


@pytest.mark.parametrize("capability", [80, 89, 90])
@pytest.mark.parametrize(
    "sizes", [(32, 1, 1, 64, 64), (78, 2, 2, 64, 64), (128, 1, 3, 128, 32), (34, 2, 2, 64, 64, False, True, True)]
)
def test_compiles(sizes, capability):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pallas_kernels.flash_tpa_triton_kernel import flash_tpa

    layout = CacheLayout(*sizes)
    constants = flash_tpa_triton.constants(layout, 4096, 1, 2, layout.dim_k**-0.5, 108)
    pointers = dict.fromkeys(flash_tpa.arg_names[:9], "*bf16") | {"lengths_ptr": "*i32"}
    pointers |= dict.fromkeys(("o_ptr", "m_ptr", "l_ptr"), "*fp32")
    source = ASTSource(
        fn=flash_tpa,
        signature=pointers | dict.fromkeys(constants, "constexpr"),
        constexprs={(flash_tpa.arg_names.index(name),): value for name, value in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(num_warps=4, num_stages=2))
    assert compiled.metadata.shared <= 99 * 1024  # what a block gets on Ada


def test_says_what_it_does_not_take(monkeypatch):
    layout, lengths = CacheLayout(8, 1, 1, 64, 64), jnp.zeros((1,), jnp.int32)
    query, rows = jnp.zeros((1, 1, 8, 64), jnp.bfloat16), jnp.zeros((1, 16, layout.width), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="bfloat16 or float16"):
        flash_tpa_triton.decode(query, rows.astype(jnp.float32), lengths, layout)
    monkeypatch.setitem(sys.modules, "jax_triton", None)
    with pytest.raises(NotImplementedError, match="jax-triton"):
        flash_tpa_triton.decode(query, rows, lengths, layout)
