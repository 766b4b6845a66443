"""The Triton kernel of flash_tpa_triton; importing it needs Triton."""

import triton
import triton.language as tl


@triton.jit
def flash_tpa(
    q_ptr,  # [B, N, H, D]
    lengths_ptr,  # [B]
    rows_ptr,  # [B, M, W]
    b_ptr,  # the table of positions [M, W_B], or the rows
    a_k_ptr,  # [R_K, H], where A is the same for all tokens
    a_v_ptr,  # [R_V, H]
    o_ptr,  # [B, SPLITS, N, H, E], unnormalised
    m_ptr,  # [B, SPLITS, N, H], maxima in units of log2
    l_ptr,  # [B, SPLITS, N, H], sums
    M: tl.constexpr,
    W: tl.constexpr,
    W_B: tl.constexpr,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    R_K: tl.constexpr,
    R_V: tl.constexpr,
    PADDED_H: tl.constexpr,
    B_K: tl.constexpr,  # where the factors start in a row
    B_V: tl.constexpr,
    A_K: tl.constexpr,
    A_V: tl.constexpr,
    SCALE: tl.constexpr,  # of the logits, in units of log2
    TABLE: tl.constexpr,
    CONSTANT_A: tl.constexpr,
    SPLITS: tl.constexpr,
    HEADS: tl.constexpr,  # of a program
    TOKENS: tl.constexpr,  # of a tile
):
    item, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head_blocks = tl.cdiv(H, HEADS)
    n = item // head_blocks
    h = (item % head_blocks) * HEADS + tl.arange(0, HEADS)
    d, e = tl.arange(0, D), tl.arange(0, E)
    real = h < H
    q = tl.load(q_ptr + ((b * N + n) * H + h)[:, None] * D + d[None, :], mask=real[:, None], other=0.0)

    length = tl.minimum(tl.maximum(tl.load(lengths_ptr + b), 0), M)
    visible = length - (N - 1) + n
    tiles = tl.cdiv(length, TOKENS)
    share = tl.cdiv(tiles, SPLITS)
    start = tl.minimum(split * share, tiles)
    stop = tl.minimum(start + share, tiles)

    # Finite, so that a part without visible tokens gives no NaN.
    m = tl.full([HEADS], -1e30, tl.float32)
    l = tl.zeros([HEADS], tl.float32)
    o = tl.zeros([HEADS, E], tl.float32)
    for t in range(start, stop):
        token = t * TOKENS + tl.arange(0, TOKENS)
        valid = token < length
        real_and_valid = real[:, None] & valid[None, :]
        row = (b.to(tl.int64) * M + token) * W
        if TABLE:
            b_row = token.to(tl.int64) * W_B
        else:
            b_row = row
        s = tl.zeros([HEADS, TOKENS], tl.float32)
        for r in tl.static_range(R_K):
            b_k = tl.load(b_ptr + b_row[None, :] + (B_K + r * D + d)[:, None], mask=valid[None, :], other=0.0)
            if CONSTANT_A:
                a_k = tl.load(a_k_ptr + r * H + h, mask=real, other=0.0)[:, None]
            else:
                a_k = tl.load(rows_ptr + row[None, :] + (A_K + r * PADDED_H + h)[:, None], mask=real_and_valid, other=0.0)
            s += tl.dot(q, b_k) * a_k.to(tl.float32)
        s = tl.where((token < visible)[None, :], s * SCALE, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        alpha = tl.exp2(m - m_new)
        p = tl.exp2(s - m_new[:, None])
        l = l * alpha + tl.sum(p, 1)
        o = o * alpha[:, None]
        m = m_new
        for r in tl.static_range(R_V):
            b_v = tl.load(b_ptr + b_row[:, None] + (B_V + r * E + e)[None, :], mask=valid[:, None], other=0.0)
            if CONSTANT_A:
                a_v = tl.load(a_v_ptr + r * H + h, mask=real, other=0.0)[:, None]
            else:
                a_v = tl.load(rows_ptr + row[None, :] + (A_V + r * PADDED_H + h)[:, None], mask=real_and_valid, other=0.0)
            o = tl.dot((p * a_v.to(tl.float32)).to(b_v.dtype), b_v, o)

    out = ((b * SPLITS + split) * N + n) * H + h
    tl.store(o_ptr + out[:, None] * E + e[None, :], o, mask=real[:, None])
    tl.store(m_ptr + out, m, mask=real)
    tl.store(l_ptr + out, l, mask=real)
