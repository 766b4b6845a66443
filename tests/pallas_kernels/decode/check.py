"""Holds a decode kernel against Algorithm 1 in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.decode import flash_tpa
from tests.pallas_kernels.oracle import make, oracle


def check(
    layout, lengths, capacity=None, N=1, R_Q=6, dtype=jnp.bfloat16, kernel="mosaic_gpu", **options
):
    """Sequences of these lengths, in a cache of that layout and capacity (default: the longest of
    them), with random queries. The other options are those of oracle.make.
    """
    query, factors, rows, constants = make(
        layout, lengths, capacity or max(max(lengths), 1), N, R_Q, dtype, **options
    )
    decode = functools.partial(
        flash_tpa.decode,
        layout=layout,
        kernel=kernel,
        return_lse=True,
        rotation=constants.pop("rotation", None),
    )
    decode = jax.jit(decode)
    got, lse = decode(query, rows, jnp.asarray(lengths, jnp.int32), **constants)
    again, _ = decode(query, rows, jnp.asarray(lengths, jnp.int32), **constants)
    assert got.dtype == dtype and lse.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(again, np.float32))
    want, want_lse, bound = oracle(query, factors, lengths, layout.dim_k**-0.5)
    got, lse = np.asarray(got, np.float64), np.asarray(lse, np.float64)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(np.isfinite(lse), np.isfinite(want_lse))
    assert np.linalg.norm(got - want) <= 1e-2 * np.linalg.norm(want)
    seen = np.isfinite(want_lse)
    if (
        not R_Q and layout.stores_a
    ):  # a dense query is not rounded: what is left is the rounding of P a_v and of the output
        assert (abs(got - want) <= 2.0**-7 * (bound + abs(want)) + 1e-6).all()
        np.testing.assert_allclose(lse[seen], want_lse[seen], atol=1e-3)
    else:
        np.testing.assert_allclose(
            lse[seen], want_lse[seen], atol=5e-2 * options.get("query_scale", 1.0)
        )
