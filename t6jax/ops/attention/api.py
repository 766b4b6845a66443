"""`causal_attention`: attention over whole sequences, for training and prefill."""

import functools
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from t6jax.errors import InputError
from t6jax.ops import implementation as implementations
from t6jax.ops import names
from t6jax.ops.attention import cudnn, mosaic_gpu, xla
from t6jax.ops.attention.segments import Segments


def causal_attention(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S G D"],
    value: Float[Array, "B S G E"],
    *,
    segment_ids: Int[Array, "B S"] | Segments | None = None,
    chunks: tuple[Int[Array, ""], Int[Array, ""]] | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T H E"]:
    """Softmax(scale Q K^T) V per head (eq. 3.2), each token seeing itself and those before it.

    Heads 0 .. H/G - 1 share key and value 0, and so on.

    | implementation | what it takes                                                            |
    |----------------|--------------------------------------------------------------------------|
    | "mosaic_gpu"   | Hopper; bfloat16, G = H, D = E = 64, T a multiple of 128 (of 512 with    |
    |                | chunks), no segments; on a mesh inside of jax.shard_map alone            |
    | "cudnn"        | NVIDIA GPUs; bfloat16 or float16, T above 1, the wider of D and E a      |
    |                | multiple of 8 up to 128, even T under segments or chunks                 |
    | "xla"          | every call; softmax in float32. Many scores are not kept for the         |
    |                | gradient, but computed some heads at a time and again                    |

    With None, "mosaic_gpu" runs where its blocks fill the GPU (its forward pass and its gradient
    are chosen apart), then "cudnn", then "xla"; outside of CUDA, "xla". Why not a faster one is
    logged once for each kind of call, at level INFO of the logger "t6jax". In half precision the
    function has no forward-mode derivative.

    Args:
      query: [B, T, H, D], RoPE already applied, as for the keys.
      key: [B, S, G, D]; S = T without chunks.
      value: [B, S, G, E].
      segment_ids: int [B, S]: tokens see only tokens of their own segment; with Segments, of their
        context's too.
      chunks: (earlier, later), where devices split a sequence of S tokens: the numbers of the two
        chunks of T/2 tokens that the queries are, counted from 0. Keys, values and segments are of
        the whole sequence.
      scale: of the softmax, default 1/sqrt(D).
      implementation: one of the table's, or None.

    Returns:
      [B, T, H, E] in the value's dtype.

    Raises:
      InputError: shapes do not fit together, or implementation is unknown.
      NotImplementedError: the named implementation does not take the call.
    """
    _check(query, key, value, chunks)
    factor: float = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = (
        checkpoint_name(x, name)
        for x, name in ((query, names.QUERY), (key, names.KEY), (value, names.VALUE))
    )
    arrays = query, key, value, segment_ids, chunks
    plan = _plan(implementation, *arrays)
    if plan is None:
        return checkpoint_name(xla.attend(*arrays, scale=factor)[0], names.ATTENTION)
    if factor <= 0:  # which the kernels do not take
        arrays = query * (-1 if factor else 0), *arrays[1:]
        factor = -factor or 1.0
    return _attention(*arrays, factor, plan)


class Plan(NamedTuple):
    """Which kernels attention runs through where it is lowered for CUDA.

    Attributes:
      forward: the kernel of the forward pass, where no gradient follows.
      gradient: the gradient's kernel.
      forward_with_gradient: the kernel of the forward pass, where a gradient follows. cuDNN's
        gradient needs log-sum-exps of cuDNN's own.
      named: the implementation that the user named.
    """

    forward: str
    gradient: str
    forward_with_gradient: str
    named: str | None = None


def _plan(implementation: str | None, *arrays: Any) -> Plan | None:
    """None: the definition."""
    query, key, value, _, chunks = arrays
    named = implementation is not None

    def no_forward() -> str | None:
        reason = mosaic_gpu.unsupported(*arrays)
        return reason or (None if named else mosaic_gpu.slower_than_cudnn(query, chunks))

    def kind() -> str:
        mask = "segments" if arrays[3] is not None else "no segments"
        return (
            f"{query.dtype}, T={query.shape[1]}, S={key.shape[1]}, H={query.shape[2]}, "
            f"G={key.shape[2]}, D={query.shape[3]}, E={value.shape[3]}, {mask}"
        )

    refusals = {"mosaic_gpu": no_forward, "cudnn": lambda: cudnn.unsupported(*arrays)}
    takers = implementations.choose("causal_attention", refusals, implementation, kind)
    if not takers:
        return None
    forward = takers[0]
    if named:
        return Plan(forward, forward, forward, implementation)
    ours = mosaic_gpu.unsupported_gradient(*arrays)
    if "cudnn" not in takers:
        return Plan(forward, forward, forward) if ours is None else None
    ours = ours or mosaic_gpu.gradient_slower_than_cudnn(query, key, chunks)
    gradient = "mosaic_gpu" if ours is None else "cudnn"
    return Plan(forward, gradient, forward if gradient == "mosaic_gpu" else "cudnn")


KERNELS = {"mosaic_gpu": mosaic_gpu, "cudnn": cudnn}


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attention(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array | Segments | None,
    chunks: tuple[Array, Array] | None,
    scale: float,
    plan: Plan,
) -> Float[Array, "B T H E"]:
    if plan.forward == "cudnn":
        kernel = functools.partial(cudnn.attend, scale=scale)
    else:
        kernel = lambda *arrays: mosaic_gpu.attend_with_lse(*arrays, scale=scale)[0]
    definition = lambda *arrays: xla.attend(*arrays, scale=scale)[0]
    arrays = query, key, value, segment_ids, chunks
    return implementations.by_platform(kernel, definition, *arrays, implementation=plan.named)


def _forward(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array | Segments | None,
    chunks: tuple[Array, Array] | None,
    scale: float,
    plan: Plan,
) -> tuple[Array, tuple]:
    arrays = query, key, value, segment_ids, chunks
    kernel = functools.partial(KERNELS[plan.forward_with_gradient].attend_with_lse, scale=scale)
    definition = functools.partial(xla.attend, scale=scale)
    out, lse = checkpoint_name(
        implementations.by_platform(kernel, definition, *arrays, implementation=plan.named),
        names.ATTENTION,
    )
    return out, (*arrays, out, lse)


def _backward(scale: float, plan: Plan, residuals: tuple, grad: Array) -> tuple:
    kernel = functools.partial(KERNELS[plan.gradient].gradient, scale=scale)

    def definition(query, key, value, segment_ids, chunks, out, lse, grad):
        attend = lambda q, k, v: xla.attend(q, k, v, segment_ids, chunks, scale=scale)[0]
        return jax.vjp(attend, query, key, value)[1](grad)

    grads = implementations.by_platform(
        kernel, definition, *residuals, grad, implementation=plan.named
    )
    return *grads, None, None


_attention.defvjp(_forward, _backward)


def _check(query: Array, key: Array, value: Array, chunks: tuple | None) -> None:
    (batch, tokens, heads, dim), (_, keys, groups, _) = query.shape, key.shape
    if key.shape[:3] != value.shape[:3] or (key.shape[0], key.shape[3]) != (batch, dim):
        raise InputError(
            f"query {query.shape}, key {key.shape} and value {value.shape} do not fit together: "
            "give [B, T, H, D], [B, S, G, D] and [B, S, G, E]"
        )
    if heads % groups:
        raise InputError(f"the key's {groups} heads must divide the query's {heads}")
    if chunks is None and tokens != keys:
        raise InputError(
            f"the query has {tokens} tokens and the key {keys}: give equally many, or chunks"
        )
    if chunks is not None and (tokens % 2 or keys % tokens):
        raise InputError(
            f"with chunks the query's tokens must be even and divide the key's; they are {tokens} "
            f"and {keys}"
        )
