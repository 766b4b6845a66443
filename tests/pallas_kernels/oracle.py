"""Algorithm 1 in float64, and random inputs for it."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.decode import cache_layout


def oracle(query, factors, lengths, scale):
    """(outputs, log-sum-exps, and the outputs' sums of absolute terms, by which rounding errors are
    measured).
    """
    a_k, b_k, a_v, b_v = [np.asarray(x, np.float64) for x in factors]
    if isinstance(query, tuple):
        a_q, b_q = [np.asarray(x, np.float64) for x in query]
        q = np.einsum("bnrh,bnrd->bnhd", a_q, b_q) / a_q.shape[2]
    else:
        q = np.asarray(query, np.float64)
    (B, N, H, _), E = q.shape, b_v.shape[-1]
    out, bound, lse = np.zeros((B, N, H, E)), np.zeros((B, N, H, E)), np.full((B, N, H), -np.inf)
    for b, length in enumerate(lengths):
        keys = np.einsum("mrh,mrd->mhd", a_k[b, :length], b_k[b, :length]) / a_k.shape[2]
        values = np.einsum("mrh,mre->mhe", a_v[b, :length], b_v[b, :length]) / a_v.shape[2]
        sizes = np.einsum("mrh,mre->mhe", abs(a_v[b, :length]), abs(b_v[b, :length])) / a_v.shape[2]
        for n in range(N):
            if (seen := length - N + 1 + n) > 0:
                logits = np.einsum("mhd,hd->hm", keys[:seen], q[b, n]) * scale
                top = logits.max(1, keepdims=True)
                p = np.exp(logits - top)
                lse[b, n] = top[:, 0] + np.log(p.sum(1))
                p /= p.sum(1, keepdims=True)
                out[b, n] = np.einsum("hm,mhe->he", p, values[:seen])
                bound[b, n] = np.einsum("hm,mhe->he", p, sizes[:seen])
    return out, lse, bound


def rotation(dim, dtype="float32"):
    return cache_layout.Rotation(
        tuple(float(np.float32(10000.0) ** np.float32(-2 * i / dim)) for i in range(dim // 2)),
        dtype,
    )


def rotated(b_k, rotation):
    """Keys [B, M, R_K, D] after RoPE, rounded as the kernels round: angles to float32, keys to
    their own dtype.
    """
    angles = np.arange(b_k.shape[1], dtype=np.float32)[:, None] * np.asarray(
        rotation.frequencies, np.float32
    )
    cos, sin = [
        np.float64(jnp.asarray(f(np.float64(angles)), rotation.dtype))[:, None]
        for f in (np.cos, np.sin)
    ]
    x, y = np.split(np.asarray(b_k, np.float64), 2, axis=-1)
    return jnp.asarray(np.concatenate([x * cos + y * sin, y * cos - x * sin], axis=-1), b_k.dtype)


def make(layout, lengths, capacity, N, R_Q, dtype, query_scale=1.0, equal=False, turn=None):
    B, rng = len(lengths), np.random.default_rng(0)
    normal = lambda *shape, size=1.0: jnp.asarray(size * rng.standard_normal(shape), dtype)
    if R_Q:
        query = normal(B, N, R_Q, layout.heads), normal(B, N, R_Q, layout.dim_k, size=query_scale)
    else:
        query = normal(B, N, layout.heads, layout.dim_k, size=query_scale)
    factors = [
        normal(B, capacity, layout.rank_k, layout.heads),
        normal(B, capacity, layout.rank_k, layout.dim_k, size=0.0 if equal else 1.0),
        normal(B, capacity, layout.rank_v, layout.heads),
        normal(B, capacity, layout.rank_v, layout.dim_v),
    ]
    constants = {}
    if not layout.stores_a:  # one A for all tokens
        factors[0], factors[2] = [
            jnp.broadcast_to(factors[i][:1, :1], factors[i].shape) for i in (0, 2)
        ]
        constants["a"] = factors[0][0, 0], factors[2][0, 0]
    if layout.shared_b:
        factors[3] = factors[1]
    if not layout.stores_b:  # one B for all sequences
        factors[1], factors[3] = [
            jnp.broadcast_to(factors[i][:1], factors[i].shape) for i in (1, 3)
        ]
        constants["b"] = cache_layout.pack_b(layout, factors[1][0], factors[3][0])
    behind = jnp.arange(capacity) >= jnp.asarray(lengths)[:, None]
    rows = cache_layout.pack(layout, *factors)
    rows = jnp.where(
        behind.reshape(*behind.shape, *[1] * (rows.ndim - 2)), jnp.nan, rows
    )  # nothing behind a sequence's end may matter
    if turn:
        factors[1], constants["rotation"] = rotated(factors[1], turn), turn
    return query, factors, rows, constants
