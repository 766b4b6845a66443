"""vmap for kernels that compute each row, or sequence, of their arguments by itself."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap


def row_wise(function: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
    """Gives a function of arrays [N, ...], whose rows are independent, a rule for vmap.

    The mapped axis becomes part of N: one call computes all rows, in the same way as without vmap.
    jax-triton has no rule of its own, and Mosaic GPU's runs one call after another.

    Args:
        function: Takes arrays, and gives an array or a sequence of arrays [N, ...].
        shared: How many of its last arguments are the same for all rows. Where one of them is
            mapped, one call runs after another.
    """
    call = custom_vmap(function)

    @call.def_vmap
    def rule(size, mapped, *arguments):
        rows = len(arguments) - shared
        if any(mapped[rows:]):
            at = lambda i: [x[i] if m else x for x, m in zip(arguments, mapped, strict=True)]
            results = lax.map(lambda i: call(*at(i)), jnp.arange(size))
            return results, jax.tree.map(lambda _: True, results)

        def merge(x, is_mapped):
            x = x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        merged = map(merge, arguments[:rows], mapped[:rows])
        results = call(*merged, *arguments[rows:])
        split = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), results)
        return split, jax.tree.map(lambda _: True, results)

    return call
