"""The loss of a language model."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from pallas_kernels.elementwise.cross_entropy import cross_entropy_gradient
from t6jax.ops.on_gpu import takes_kernels
from t6jax.ops.precision import accumulator, at_least_float32


def cross_entropy(
    logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """-log softmax(logits)[target] of each token, in nats, float32 or wider."""
    return optax.softmax_cross_entropy_with_integer_labels(at_least_float32(logits), targets)


class VocabShard(NamedTuple):
    """That devices along a mesh axis have equal parts of the vocabulary; what lies behind its size
    does not count.
    """

    axis: str
    vocab_size: int


def sharded_cross_entropy(
    logits: Float[Array, "*batch shard"], targets: Int[Array, "*batch"], shard: VocabShard
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch shard"]]:
    """`cross_entropy` where this device has the logits of a shard of the vocabulary, and the
    gradient of these logits.

    Three numbers a token go between the devices: maximum, sum and the target's logit.
    """
    tokens = jax.lax.axis_index(shard.axis) * logits.shape[-1] + jnp.arange(logits.shape[-1])
    logits = jnp.where(tokens < shard.vocab_size, at_least_float32(logits), -jnp.inf)
    highest = jax.lax.pmax(jnp.max(logits, axis=-1), shard.axis)
    hit = tokens == targets[..., None]
    total = jnp.sum(jnp.exp(logits - highest[..., None]), axis=-1)
    total, wanted = jax.lax.psum((total, jnp.sum(jnp.where(hit, logits, 0), axis=-1)), shard.axis)
    lse = jnp.log(total) + highest
    return lse - wanted, jnp.exp(logits - lse[..., None]) - hit


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def mean_cross_entropy(
    x: Float[Array, "B T d_model"],
    table: Float[Array, "V d_model"],
    targets: Int[Array, "B T"],
    pieces: int = 1,
    shard: VocabShard | None = None,
) -> Float[Array, ""]:
    """The mean over all tokens of -log softmax(x table^T)[target], in nats; logits and softmax in
    float32 or wider.

    The gradients of x and the table are formed beside the loss, so that the logits, the largest
    array of a training step, are computed once and live for one piece of the sequence. The logits'
    gradient has x's dtype; the table's, summed in float32, has the table's.

    pieces: that T is cut into; it must divide T. shard: which of the vocabulary the table is; None:
        all of it.
    """
    return _loss(x, table, targets, pieces, shard, with_gradients=False)[0]


def _loss(x, table, targets, pieces, shard, *, with_gradients):
    wide = accumulator(x.dtype)
    narrow = table.astype(x.dtype)
    total, x_grads, table_grad = jnp.zeros((), wide), [], jnp.zeros(table.shape, wide)
    for piece, wanted in zip(
        jnp.split(x, pieces, axis=1), jnp.split(targets, pieces, axis=1), strict=True
    ):
        logits = jnp.einsum("btd,vd->btv", piece, narrow, preferred_element_type=wide)
        if not with_gradients:
            total += jnp.sum(
                cross_entropy(logits, wanted)
                if shard is None
                else sharded_cross_entropy(logits, wanted, shard)[0]
            )
        else:
            losses, grad = _losses_and_gradient(logits, wanted, x.dtype, shard)
            total += jnp.sum(losses)
            x_grads.append(jnp.einsum("btv,vd->btd", grad, narrow))
            table_grad += jnp.einsum("btv,btd->vd", grad, piece, preferred_element_type=wide)
    gradients = (
        (jnp.concatenate(x_grads, axis=1), table_grad.astype(table.dtype))
        if with_gradients
        else None
    )
    return total / targets.size, gradients


def _losses_and_gradient(logits, targets, dtype, shard):
    if shard is not None:
        losses, grad = sharded_cross_entropy(logits, targets, shard)
        return losses, grad.astype(dtype)
    if takes_kernels(dtype, logits):
        losses, grad = cross_entropy_gradient(
            logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), dtype
        )
        return losses.reshape(targets.shape), grad.reshape(logits.shape)
    lse = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    hit = targets[..., None] == jnp.arange(logits.shape[-1])
    losses = lse[..., 0] - jnp.sum(jnp.where(hit, logits, 0), axis=-1)
    return losses, (jnp.exp(logits - lse) - hit).astype(dtype)


def _forward(x, table, targets, pieces, shard):
    loss, gradients = _loss(x, table, targets, pieces, shard, with_gradients=True)
    return loss, (gradients, targets.size)


def _backward(pieces, shard, residuals, g):
    gradients, count = residuals
    if shard is not None:  # the loss of each device along the axis depends on this one's logits
        g = jax.lax.psum(g, shard.axis)
    return *((x * (g / count)).astype(x.dtype) for x in gradients), None


mean_cross_entropy.defvjp(_forward, _backward)
