"""Sequences split over devices, in chunks.

A sequence over s devices is cut into 2s chunks, and device i has chunks i and 2s-1-i. In causal
attention one of them attends to little and the other to much, so all devices have equal work.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Int

from t6jax.ops.names import GATHERED_SEQUENCE
from t6jax.parallel.mesh import axis_size


def sequence_shards() -> int:
    """The number of devices that each sequence is split over."""
    return axis_size("sequence")


def local_tokens(tokens: Any) -> Any:
    """This device's two chunks of arrays [B, T, ...]; T is a multiple of 2s."""
    shards = sequence_shards()
    if shards == 1:
        return tokens

    def local(x: Array) -> Array:
        chunks = x.reshape(x.shape[0], 2 * shards, -1, *x.shape[2:])
        pick = lambda n: jax.lax.dynamic_index_in_dim(chunks, n, axis=1, keepdims=False)
        return jnp.concatenate([pick(n) for n in local_chunks()], axis=1)

    return jax.tree.map(local, tokens)


def local_chunks() -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The numbers of this device's two chunks: the earlier one, below s, and the later one."""
    i = jax.lax.axis_index("sequence")
    return i, 2 * sequence_shards() - 1 - i


def gather_sequence(local: Any) -> Any:
    """The inverse of local_tokens: arrays [B, T, ...] in the sequence's order, from the tokens of
    all devices that split it.
    """
    shards = sequence_shards()
    if shards == 1:
        return local

    def whole(x: Array) -> Array:
        x = jax.lax.all_gather(x, "sequence", axis=1)  # [B, s, 2 chunks, ...]
        x = x.reshape(x.shape[0], shards, 2, -1, *x.shape[3:])
        x = jnp.concatenate([x[:, :, 0], jnp.flip(x[:, :, 1], axis=1)], axis=1)
        return checkpoint_name(x.reshape(x.shape[0], -1, *x.shape[3:]), GATHERED_SEQUENCE)

    return jax.tree.map(whole, local)
