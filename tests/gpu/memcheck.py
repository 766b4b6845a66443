"""Runs the decode kernels over odd shapes and ragged lengths, for compute-sanitizer to watch: see
test_memcheck.py.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.decode import cache_layout, flash_tpa
from pallas_kernels.decode.cache_layout import CacheLayout
from tests.pallas_kernels.oracle import make, rotation

LENGTHS = [201, 0, 1, 130, 64, 65]
CASES = [
    (CacheLayout(5, 3, 1, 32, 128), dict(N=3), None),
    (CacheLayout(47, 2, 2, 64, 64), dict(N=2), None),
    (CacheLayout(78, 2, 2, 64, 64), {}, None),
    (CacheLayout(47, 2, 2, 64, 64, True, True, True), dict(R_Q=0), rotation(64)),
    (CacheLayout(34, 2, 2, 64, 64, False), {}, None),
    (CacheLayout(61, 2, 2, 64, 64, True, False), {}, None),
    (CacheLayout(47, 2, 2, 64, 64, True, True, False, 2), {}, None),
]


def main(kernels):
    append = jax.jit(cache_layout.append, donate_argnums=0)
    for layout, options, turn in CASES:
        options = dict(N=1, R_Q=6) | options
        query, _, rows, constants = make(
            layout, LENGTHS, 203, dtype=jnp.bfloat16, turn=turn, **options
        )
        rows = append(rows, rows[:, :2], jnp.array([201, -1, 202, 203, 5, 65]))
        for kernel in kernels:
            decode = jax.jit(
                functools.partial(
                    flash_tpa.decode,
                    layout=layout,
                    kernel=kernel,
                    rotation=constants.get("rotation"),
                )
            )
            arrays = {name: x for name, x in constants.items() if name != "rotation"}
            out = decode(query, rows, jnp.array(LENGTHS), **arrays)
            assert np.isfinite(np.asarray(out, np.float32)).all()
            print(kernel, layout, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
