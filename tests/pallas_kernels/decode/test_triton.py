"""The Triton kernels without a GPU: interpreted, compiled for Ampere, Ada and Hopper, and what they
refuse.
"""

import functools
import sys

import jax.numpy as jnp
import pytest

from pallas_kernels.decode import flash_tpa, triton
from pallas_kernels.decode.cache_layout import CacheLayout
from tests.pallas_kernels.compilation import build
from tests.pallas_kernels.decode.check import check
from tests.pallas_kernels.oracle import rotation


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((5, 3, 1, 32, 64), dict(N=3)),
        ((34, 2, 2, 64, 64), dict(R_Q=0, dtype=jnp.float16)),
        # the maxima of partial results further apart than float32's range of exponents
        ((6, 2, 2, 16, 16), dict(R_Q=0, query_scale=100.0)),
        ((17, 2, 2, 16, 16, False), dict(N=2)),  # non-contextual A
        ((17, 2, 2, 16, 16, True, False), dict()),  # non-contextual B
        # shared B, RoPE on reading
        ((17, 2, 2, 16, 16, True, True, True), dict(turn=rotation(16, "bfloat16"), N=2)),
        ((9, 2, 2, 32, 32, True, True, False, 2), dict()),  # heads in shards
    ],
)
@pytest.mark.usefixtures("triton_interpreter")
def test_matches_algorithm_1(sizes, options, monkeypatch):
    monkeypatch.setattr(triton, "multiprocessors", lambda: 4)  # fewer programs to interpret
    check(CacheLayout(*sizes), [130, 0, 1, 65], capacity=133, kernel="triton", **options)


# Ada has Ampere's instructions; its smaller shared memory is checked for all
@pytest.mark.parametrize("capability", [80, pytest.param(89, marks=pytest.mark.exhaustive), 90])
@pytest.mark.parametrize(
    ("sizes", "turn"),
    [
        ((32, 1, 1, 64, 64), None),
        ((78, 2, 2, 64, 64), None),
        ((128, 1, 3, 128, 32), None),
        ((34, 2, 2, 64, 64, False, True, True), rotation(64)),
    ],
)
def test_compiles(sizes, turn, capability):
    pytest.importorskip("triton")
    from pallas_kernels.decode.triton_kernels import flash_tpa_combine, flash_tpa_partials

    layout = CacheLayout(*sizes)
    config = triton.default_config(layout)
    constants = triton.constants(
        layout, 2, 4096, 1, 6, layout.dim_k**-0.5, 108, config, rotation=turn
    )
    pointers = dict.fromkeys(flash_tpa_partials.arg_names[:11], "*bf16") | {
        "lengths_ptr": "*i32",
        "frequencies_ptr": "*fp32",
    }
    pointers |= dict.fromkeys(("o_ptr", "m_ptr", "l_ptr"), "*fp32")
    compiled = build(
        flash_tpa_partials,
        pointers,
        constants,
        capability,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    assert compiled.metadata.shared <= 99 * 1024  # what a block gets on Ada
    sizes = dict(
        NH=layout.heads, E=layout.dim_v, R_V=layout.rank_v, SPLITS=50, PADDED_SPLITS=64, CHUNK=16
    )
    build(
        flash_tpa_combine,
        dict.fromkeys(flash_tpa_combine.arg_names[:5], "*fp32") | {"out_ptr": "*bf16"},
        sizes,
        capability,
        num_warps=1,
    )


def test_says_what_it_does_not_take(monkeypatch):
    layout, lengths = CacheLayout(8, 1, 1, 64, 64), jnp.zeros((1,), jnp.int32)
    query, rows = (
        jnp.zeros((1, 1, 8, 64), jnp.bfloat16),
        jnp.zeros((1, 16, layout.width), jnp.bfloat16),
    )
    decode = functools.partial(flash_tpa.decode, kernel="triton")
    with pytest.raises(NotImplementedError, match="bfloat16 or float16"):
        decode(query, rows.astype(jnp.float32), lengths, layout)
    monkeypatch.setitem(sys.modules, "jax_triton", None)
    with pytest.raises(NotImplementedError, match="jax-triton"):
        decode(query, rows, lengths, layout)
