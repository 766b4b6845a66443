"""The loss of a language model."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, DTypeLike, Float, Int

from pallas_kernels.elementwise.cross_entropy import cross_entropy_gradient, unsupported
from t6jax.ops.implementation import by_platform, choose
from t6jax.ops.precision import accumulator, at_least_float32


def cross_entropy(
    logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """-log softmax(logits)[target] of each token, in nats, float32 or wider."""
    return optax.softmax_cross_entropy_with_integer_labels(at_least_float32(logits), targets)


class VocabShard(NamedTuple):
    """That the devices along a mesh axis hold equal shards of the vocabulary.

    Attributes:
      axis: the mesh axis.
      vocab_size: of the whole vocabulary; rows of a shard from there on are padding.
    """

    axis: str
    vocab_size: int


def sharded_cross_entropy(
    logits: Float[Array, "*batch V_shard"], targets: Int[Array, "*batch"], shard: VocabShard
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch V_shard"]]:
    """`cross_entropy` where this device has the logits of its shard of the vocabulary.

    The devices exchange three numbers a token: the maximum, the sum and the target's logit.

    Returns:
      The losses, and the gradient of this device's logits.
    """
    tokens = jax.lax.axis_index(shard.axis) * logits.shape[-1] + jnp.arange(logits.shape[-1])
    logits = jnp.where(tokens < shard.vocab_size, at_least_float32(logits), -jnp.inf)
    highest = jax.lax.pmax(jnp.max(logits, axis=-1), shard.axis)
    hit = tokens == targets[..., None]
    total = jnp.sum(jnp.exp(logits - highest[..., None]), axis=-1)
    total, wanted = jax.lax.psum((total, jnp.sum(jnp.where(hit, logits, 0), axis=-1)), shard.axis)
    lse = jnp.log(total) + highest
    return lse - wanted, jnp.exp(logits - lse[..., None]) - hit


def mean_cross_entropy(
    x: Float[Array, "B T d_model"],
    table: Float[Array, "V d_model"],
    targets: Int[Array, "B T"],
    slices: int = 1,
    shard: VocabShard | None = None,
    *,
    implementation: str | None = None,
) -> Float[Array, ""]:
    """The mean over all tokens of -log softmax(x table^T)[target], in nats.

    Logits and softmax are float32 or wider. The gradients of x and of the table are formed together
    with the loss: the logits, the largest array of a training step, are computed once, and live for
    one slice of the sequence. The logits' gradient has x's dtype; the table's is summed in float32
    and has the table's dtype.

    Args:
      x: [B, T, d_model], what the head reads.
      table: [V, d_model], the head's weights.
      targets: [B, T].
      slices: how many slices of T the logits are computed in; divides T.
      shard: the vocabulary shard that the table is; None: the table is all of the vocabulary.
      implementation: of the losses with their gradient: "triton" (NVIDIA GPUs, half precision,
        unsharded), "xla" or None, the faster one that takes the call.

    Raises:
      NotImplementedError: the named implementation does not take the call.
    """

    def refuse() -> str | None:
        if shard is not None:
            return "it does not take a sharded vocabulary"
        if x.dtype not in (jnp.bfloat16, jnp.float16):
            return f"x must be bfloat16 or float16, not {x.dtype}"
        return unsupported(accumulator(x.dtype))

    kind = lambda: f"{x.dtype}, V={len(table)}{'' if shard is None else ', sharded'}"
    takers = choose("mean_cross_entropy", {"triton": refuse}, implementation, kind)
    return _mean_cross_entropy(x, table, targets, slices, shard, bool(takers), implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _mean_cross_entropy(
    x: Array,
    table: Array,
    targets: Array,
    slices: int,
    shard: VocabShard | None,
    kernel: bool,
    named: str | None,
) -> Array:
    total = jnp.zeros((), accumulator(x.dtype))
    for _, logits, wanted in _logits(x, table.astype(x.dtype), targets, slices):
        losses = (
            cross_entropy(logits, wanted)
            if shard is None
            else sharded_cross_entropy(logits, wanted, shard)[0]
        )
        total += jnp.sum(losses)
    return total / targets.size


def _logits(x: Array, table: Array, targets: Array, slices: int):
    """x, the logits and the targets of each slice of the sequence."""
    for tokens, wanted in zip(
        jnp.split(x, slices, axis=1), jnp.split(targets, slices, axis=1), strict=True
    ):
        logits = jnp.einsum(
            "btd,vd->btv",
            tokens,
            table,
            preferred_element_type=accumulator(x.dtype),
        )
        yield tokens, logits, wanted


def _forward(
    x: Array,
    table: Array,
    targets: Array,
    slices: int,
    shard: VocabShard | None,
    kernel: bool,
    named: str | None,
) -> tuple[Array, tuple]:
    wide, narrow = accumulator(x.dtype), table.astype(x.dtype)
    total, x_grads, table_grad = jnp.zeros((), wide), [], jnp.zeros(table.shape, wide)
    definition = functools.partial(_losses_and_gradient_xla, dtype=x.dtype)
    triton = functools.partial(_losses_and_gradient_triton, dtype=x.dtype)
    for tokens, logits, wanted in _logits(x, narrow, targets, slices):
        if shard is not None:
            losses, grad = sharded_cross_entropy(logits, wanted, shard)
            grad = grad.astype(x.dtype)
        elif kernel:
            losses, grad = by_platform(triton, definition, logits, wanted, implementation=named)
        else:
            losses, grad = definition(logits, wanted)
        total += jnp.sum(losses)
        x_grads.append(jnp.einsum("btv,vd->btd", grad, narrow))
        table_grad += jnp.einsum("btv,btd->vd", grad, tokens, preferred_element_type=wide)
    gradients = jnp.concatenate(x_grads, axis=1), table_grad.astype(table.dtype)
    return total / targets.size, (gradients, targets.size)


def _losses_and_gradient_triton(
    logits: Array, targets: Array, *, dtype: DTypeLike
) -> tuple[Array, Array]:
    losses, grad = cross_entropy_gradient(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), dtype
    )
    return losses.reshape(targets.shape), grad.reshape(logits.shape)


def _losses_and_gradient_xla(
    logits: Array, targets: Array, *, dtype: DTypeLike
) -> tuple[Array, Array]:
    lse = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    hit = targets[..., None] == jnp.arange(logits.shape[-1])
    losses = lse[..., 0] - jnp.sum(jnp.where(hit, logits, 0), axis=-1)
    return losses, (jnp.exp(logits - lse) - hit).astype(dtype)


def _backward(
    slices: int,
    shard: VocabShard | None,
    kernel: bool,
    named: str | None,
    residuals: tuple,
    grad: Array,
) -> tuple[Array, Array, None]:
    gradients, count = residuals
    if shard is not None:  # the loss of each device along the axis depends on this one's logits
        grad = jax.lax.psum(grad, shard.axis)
    return *((x * (grad / count)).astype(x.dtype) for x in gradients), None


_mean_cross_entropy.defvjp(_forward, _backward)
