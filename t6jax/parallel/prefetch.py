"""Layers whose parameters other devices store, one after another: what is sent travels beside a
neighbour's computation.

In a loop XLA sees to that (loop_prefetch_options). Out of a loop it may bring many layers'
parameters at once, and keeps all their gradients whole to send them together at the end: what waits
for what is written here, in barriers. XLA drops from a barrier what nothing reads afterwards, so
everything that comes out of one is used.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Transport(NamedTuple):
    """How a layer's parameters come. pack: what this device stores of a layer -> what it sends.
    gather: that -> parameters; its gradient sums those of all devices and leaves each its part.
        Both are linear."""

    pack: Callable[[Any], Any]
    gather: Callable[[Any], Any]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run_prefetched(
    block: Callable[[Any, Any], Any], transport: Transport, stacked: Any, carry: Any
) -> Any:
    """carry = block(parameters of a layer, carry), layer after layer; returns the last carry.

    stacked: what this device stores of the layers, along a leading axis. block must not close over
        what is differentiated.

    A layer's parameters come while the layer in front of it runs and, since only the last layer's
    are kept, once more while the layer behind it runs backward. Its gradients leave while the layer
    in front of it runs backward, and have left when that has ended.
    """
    return _forward(lambda *x: (block(*x), None), transport, stacked, carry)[0]


def _forward(
    step: Callable, transport: Transport, stacked: Any, carry: Any
) -> tuple[Any, list[Any], tuple[Any, Callable]]:
    """The last carry, what step gives beside it for each layer, and what _gather gives for the last
    layer.
    """
    extras, last = [], jax.tree.leaves(stacked)[0].shape[0] - 1
    params, scatter = _gather(transport, stacked, 0)
    for i in range(last + 1):
        if i < last:
            carry, params, stacked = jax.lax.optimization_barrier((carry, params, stacked))
            following = _gather(transport, stacked, i + 1)
        carry, extra = step(params, carry)
        extras.append(extra)
        if i < last:
            params, scatter = following
    return carry, extras, (params, scatter)


def _gather(transport: Transport, stacked: Any, i: int) -> tuple[Any, Callable]:
    """A layer's parameters, and what makes of their gradients those of what this device packed."""
    return jax.vjp(transport.gather, transport.pack(jax.tree.map(lambda x: x[i], stacked)))


def _forward_for_gradient(
    block: Callable, transport: Transport, stacked: Any, carry: Any
) -> tuple[Any, Any]:
    step = lambda params, carry: jax.vjp(block, params, carry, saveable_args=(False, True))
    carry, backward, last = _forward(step, transport, stacked, carry)
    return carry, (stacked, backward, last)


def _backward(block: Callable, transport: Transport, residuals: Any, grad: Any) -> tuple[Any, Any]:
    stacked, backward, (params, scatter) = residuals
    leaving, left = (
        None,
        [],
    )  # gradients of the layer behind, on their way; those of the layers behind that one
    for i in reversed(range(len(backward))):
        if i:
            grad, params, stacked = jax.lax.optimization_barrier((grad, params, stacked))
            following = _gather(transport, stacked, i - 1)
        backward[i].args_res[0] = params
        params_grad, grad = backward[i](grad)
        if leaving is not None:
            grad, params_grad, leaving = jax.lax.optimization_barrier((grad, params_grad, leaving))
            left.append(leaving)
        (leaving,) = scatter(params_grad)
        if i:
            params, scatter = following
    layer = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)
    unpack = jax.linear_transpose(transport.pack, layer)
    layers = [unpack(packed)[0] for packed in reversed([*left, leaving])]
    return jax.tree.map(lambda *x: jnp.stack(x), *layers), grad


run_prefetched.defvjp(_forward_for_gradient, _backward)


def loop_prefetch_options(on: bool) -> dict[str, Any]:
    """XLA's options for prefetching in a loop over layers, for jax.jit's compiler_options.

    With them, XLA starts to gather the next layer's parameters while one layer runs, and finishes
    the sums of its gradients during the next. Where layers do not run in a loop, these options do
    harm: in the loop over micro-batches, XLA computes blocks twice to send early what they give.
    """
    mode = f"COLLECTIVE_PIPELINING_MODE_{'ON' if on else 'OFF'}"
    pipelined = {
        f"xla_gpu_pipeline_{kind}": mode for kind in ("all_gather", "reduce_scatter", "all_reduce")
    }
    # two copies of the loop's body, so that what is gathered for one layer is not copied over what
    # the other uses
    return pipelined | {"xla_gpu_enable_while_loop_double_buffering": on}
