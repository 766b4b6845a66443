"""Algorithm 1 in float64, and random inputs for it."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels import tpa_cache


def oracle(query, factors, lengths, scale):
    """(outputs, log-sum-exps, and the outputs' sums of absolute terms, by which rounding errors are measured)."""
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


def make(layout, lengths, capacity, N, R_Q, dtype, query_scale=1.0, equal=False):
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
        factors[0], factors[2] = [jnp.broadcast_to(factors[i][:1, :1], factors[i].shape) for i in (0, 2)]
        constants["a"] = factors[0][0, 0], factors[2][0, 0]
    if layout.shared_b:
        factors[3] = factors[1]
    if not layout.stores_b:  # one B for all sequences
        factors[1], factors[3] = [jnp.broadcast_to(factors[i][:1], factors[i].shape) for i in (1, 3)]
        constants["b"] = tpa_cache.pack_b(layout, factors[1][0], factors[3][0])
    behind = jnp.arange(capacity) >= jnp.asarray(lengths)[:, None]
    rows = jnp.where(behind[..., None], jnp.nan, tpa_cache.pack(layout, *factors))  # nothing behind a sequence's end may matter
    return query, factors, rows, constants
