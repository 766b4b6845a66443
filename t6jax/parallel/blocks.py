"""Runs the blocks of a model one after another: gathers their parameters, and keeps the activations
that the config says.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import DTypeLike

from t6jax.parallel.gather import LayerGather
from t6jax.parallel.prefetch import Transport, run_prefetched
from t6jax.parallel.remat import checkpointed


def run_blocks(
    block: Callable[[nnx.State, Any], tuple[Any, Any]],
    stacked: nnx.State,
    carry: Any,
    *,
    dtype: DTypeLike,
    remat: str,
    unroll: bool,
) -> tuple[Any, Any]:
    """carry, output = block(parameters of a block, carry), block after block.

    Args:
        block: of a block's parameters, as the device uses them, and the carry.
        stacked: what this device stores of the blocks' parameters, along a leading axis.
        carry: of the first block.
        dtype: that parameters are gathered in.
        remat: what each block keeps for the backward pass (t6jax.parallel.remat).
        unroll: whether the blocks are compiled one after another, not as a loop. Parameters are
            then prefetched by t6jax.parallel.prefetch; in a loop XLA does it.

    Returns:
        (the last carry, the outputs stacked; None where parameters are prefetched).
    """
    first = jax.eval_shape(lambda: jax.tree.map(lambda x: x[0], stacked))
    layer = LayerGather(first, dtype)
    gathers = layer.is_gathered
    if gathers and unroll:

        def run(packed: Any, carry: Any) -> Any:
            return block(layer.unpack(packed), carry)[0]

        run = checkpointed(run, remat, gathers=gathers, in_loop=False)
        return run_prefetched(run, Transport(layer.pack, layer.gather), stacked, carry), None

    def step(carry: Any, stored: nnx.State) -> tuple[Any, Any]:
        return block(layer.gathered(stored), carry)

    step = checkpointed(step, remat, gathers=gathers, in_loop=not unroll)
    return jax.lax.scan(step, carry, stacked, unroll=unroll)
