"""Layers one after another, each with its parameters gathered while the layer before it runs.

In a loop over the layers XLA does this (loop_prefetch_options). Without a loop XLA may gather many
layers' parameters at once, and keeps the whole gradients of all layers to send them together at the
end. Barriers here say what waits for what. XLA drops from a barrier what nothing reads afterwards,
so everything that leaves a barrier is used.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Transport(NamedTuple):
    """How a layer's parameters are sent. Both functions are linear.

    Attributes:
        pack: what this device stores of a layer -> what it sends.
        gather: what it sends -> the layer's parameters. Its gradient sums those of all devices and
            leaves each device its shard.
    """

    pack: Callable[[Any], Any]
    gather: Callable[[Any], Any]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run_prefetched(
    block: Callable[[Any, Any], Any], transport: Transport, stacked: Any, carry: Any
) -> Any:
    """carry = block(parameters of a layer, carry), layer after layer.

    A layer's parameters are gathered while the layer before it runs. Only the last layer's are kept
    for the backward pass; the others are gathered again, while the layer after them runs backward.
    A layer's gradients are sent while the layer before it runs backward, and are gone when that
    ends.

    Args:
        block: must not close over anything that is differentiated.
        transport: how a layer's parameters are sent.
        stacked: what this device stores of the layers, along a leading axis.
        carry: of the first layer.

    Returns:
        The last carry.
    """
    return _forward(lambda *x: (block(*x), None), transport, stacked, carry)[0]


def _forward(
    step: Callable, transport: Transport, stacked: Any, carry: Any
) -> tuple[Any, list[Any], tuple[Any, Callable]]:
    """The last carry, the other result of step for each layer, and _gather of the last layer."""
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
    """A layer's parameters, and the function from their gradients to those of what was sent."""
    return jax.vjp(transport.gather, transport.pack(jax.tree.map(lambda x: x[i], stacked)))


def _forward_for_gradient(
    block: Callable, transport: Transport, stacked: Any, carry: Any
) -> tuple[Any, Any]:
    step = lambda params, carry: jax.vjp(block, params, carry, saveable_args=(False, True))
    carry, backward, last = _forward(step, transport, stacked, carry)
    return carry, (stacked, backward, last)


def _backward(block: Callable, transport: Transport, residuals: Any, grad: Any) -> tuple[Any, Any]:
    stacked, backward, (params, scatter) = residuals
    # gradients of the layer after this one, being sent; those of the layers after that, sent
    sending, sent = None, []
    for i in reversed(range(len(backward))):
        if i:
            grad, params, stacked = jax.lax.optimization_barrier((grad, params, stacked))
            following = _gather(transport, stacked, i - 1)
        backward[i].args_res[0] = params
        params_grad, grad = backward[i](grad)
        if sending is not None:
            grad, params_grad, sending = jax.lax.optimization_barrier((grad, params_grad, sending))
            sent.append(sending)
        (sending,) = scatter(params_grad)
        if i:
            params, scatter = following
    layer = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)
    unpack = jax.linear_transpose(transport.pack, layer)
    layers = [unpack(packed)[0] for packed in reversed([*sent, sending])]
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
