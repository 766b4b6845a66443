"""The gradient of causal attention over whole sequences for Hopper GPUs: the call, what it takes,
and when it pays. The kernel is in gradient_kernel.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.cta_groups import best_size, busy
from pallas_kernels.attention.gradient_kernel import gradient_kernel
from pallas_kernels.attention.tiles import BLOCK, DIM
from pallas_kernels.batching import row_wise

# The share of the multiprocessors' time, below which cuDNN's gradient is as fast. Nearly full, the
# kernel takes 0.6 of cuDNN's time with a head for each; where they share heads, 0.72 at 2,048
# tokens, and more beyond.
MIN_BUSY, MIN_BUSY_SHARED = 2 / 3, 0.8

ArrayLike = Array | jax.ShapeDtypeStruct


def unsupported(
    query: Float[ArrayLike, "B T H D"],
    key: Float[ArrayLike, "B S G D"],
    value: Float[ArrayLike, "B S G E"],
    chunks: Any = None,
) -> str | None:
    """Why the kernel does not take these arrays, or None. chunks: only whether there are any."""
    (B, T, H, D), S = query.shape, key.shape[1]
    if not key.shape == value.shape == (B, T if chunks is None else S, H, D):
        return "queries, keys and values must have the same shape"
    if D != DIM:
        return f"D must be {DIM}, not {D}"
    if T % BLOCK or not query.size:
        return f"T must be a multiple of {BLOCK}, not {T}"
    if chunks is not None and (T % (2 * BLOCK) or S % T):
        return f"with chunks, T must be a multiple of {2 * BLOCK} and S one of T, not {T} and {S}"
    if (
        query.dtype not in (jnp.bfloat16, jnp.float16)
        or not query.dtype == key.dtype == value.dtype
    ):
        return (
            f"the arrays must be all bfloat16 or all float16, not {query.dtype}, "
            f"{key.dtype} and {value.dtype}"
        )
    return None


def group_size(
    query: Float[ArrayLike, "B T H D"], key: Float[ArrayLike, "B S H D"], sms: int
) -> int:
    """How many CTAs share a head of these arrays, for speed."""
    (B, T, H, _), S = query.shape, key.shape[1]
    return best_size(B * H, T // BLOCK, S // BLOCK, sms)


def pays(query: Float[ArrayLike, "B T H D"], key: Float[ArrayLike, "B S H D"], sms: int) -> bool:
    """Whether the multiprocessors are busy for so much of the time that cuDNN's gradient takes
    longer.
    """
    (B, T, H, _), S = query.shape, key.shape[1]
    size = group_size(query, key, sms)
    return busy(B * H, size, T // BLOCK, S // BLOCK, sms) >= (
        MIN_BUSY if size == 1 else MIN_BUSY_SHARED
    )


def attention_gradient(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S H D"],
    value: Float[Array, "B S H D"],
    out: Float[Array, "B T H D"],
    lse: Float[Array, "B H T"],
    grad: Float[Array, "B T H D"],
    chunks: Int[Array, "2"] | None = None,
    *,
    scale: float,
    sms: int = 132,
    ctas_per_head: int | None = None,
) -> tuple[Float[Array, "B T H D"], Float[Array, "B S H D"], Float[Array, "B S H D"]]:
    """The gradients of query, key and value where out = softmax(scale Q K^T) V under a causal mask
    (eq. 3.2).

    Args:
        query: bfloat16 or float16; T a multiple of 128, D = 64.
        key: Of the query's dtype; S = T without chunks.
        value: As the key.
        out: The output, of the same dtype.
        lse: The log-sum-exps of scale Q K^T, float32.
        grad: The output's gradient, of the same dtype.
        chunks: The numbers of the two chunks, of T/2 of the S tokens each, that the halves of the
            queries are; the earlier one first. S must be a multiple of T, and T of 256.
        scale: Not 0.
        sms: The GPU's multiprocessors.
        ctas_per_head: How many CTAs share a head; default: as many as is fast. It sets the order of
            sums, hence the last bits of the query's gradient.

    Under vmap the mapped axis becomes part of B.

    Raises:
        NotImplementedError: The kernel does not take the arrays; see `unsupported`.
        ValueError: ctas_per_head is more than there are multiprocessors or blocks of keys.
    """
    if reason := unsupported(query, key, value, chunks):
        raise NotImplementedError(f"attention_gradient: {reason}")
    most = min(sms, key.shape[1] // BLOCK)
    if ctas_per_head is not None and not 1 <= ctas_per_head <= most:
        raise ValueError(
            f"attention_gradient: ctas_per_head must be 1 to {most}, no more than sms and blocks "
            f"of keys, not {ctas_per_head}"
        )

    def run(query, key, value, out, lse, grad, *chunks):
        delta = jnp.einsum("bthd,bthd->bht", out, grad, preferred_element_type=jnp.float32)
        size = ctas_per_head or group_size(query, key, sms)
        start_s, start_dp = lse * (-1 / scale), -delta
        numbers = chunks[0] if chunks else None
        return gradient_kernel(
            query, key, value, grad, start_s, start_dp, numbers, scale=scale, sms=sms, size=size
        )

    shared = () if chunks is None else (chunks,)
    run = row_wise(run, shared=len(shared))
    return run(query, key, value, out, lse, grad, *shared)
