"""The Triton kernels of flash_tpa_triton; importing them needs Triton."""

import triton
import triton.language as tl


@triton.jit
def flash_tpa_partials(
    q_ptr,  # [B, N, R_Q, H], the query's A factors; or the query itself, [B, N, H, D]
    b_q_ptr,  # [B, N, R_Q, D]
    lengths_ptr,  # [B]
    rows_ptr,  # [B / SHARES, M, SHARES, W]
    b_ptr,  # the table of positions [M, W_B], or the rows
    a_k_ptr,  # [R_K, H], where A is the same for all tokens
    a_v_ptr,  # [R_V, H]
    frequencies_ptr,  # [D / 2], where keys are stored before RoPE
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
    R_Q: tl.constexpr,  # 0: the query is dense
    PADDED_R_Q: tl.constexpr,
    R_K: tl.constexpr,
    R_V: tl.constexpr,
    PADDED_H: tl.constexpr,
    B_K: tl.constexpr,  # where the factors start in a row
    B_V: tl.constexpr,
    A_K: tl.constexpr,
    A_V: tl.constexpr,
    SHARES: tl.constexpr,  # sequences whose rows lie side by side
    SCALE: tl.constexpr,  # of the logits, in units of log2
    TABLE: tl.constexpr,
    CONSTANT_A: tl.constexpr,
    ANGLE_DTYPE: tl.constexpr,  # of cosines and sines
    HALF: tl.constexpr,  # the features that one frequency each turns, 0: none
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
    if R_Q:
        r_q = tl.arange(0, PADDED_R_Q)
        a_at = ((b * N + n) * R_Q + r_q[None, :]) * H + h[:, None]
        a_q = tl.load(q_ptr + a_at, mask=real[:, None] & (r_q < R_Q)[None, :], other=0.0)
        b_at = ((b * N + n) * R_Q + r_q[:, None]) * D + d[None, :]
        b_q = tl.load(b_q_ptr + b_at, mask=(r_q < R_Q)[:, None], other=0.0)
        q = (tl.dot(a_q, b_q) * (1.0 / R_Q)).to(rows_ptr.dtype.element_ty)
    else:
        q = tl.load(
            q_ptr + ((b * N + n) * H + h)[:, None] * D + d[None, :], mask=real[:, None], other=0.0
        )

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
        row = (((b // SHARES).to(tl.int64) * M + token) * SHARES + b % SHARES) * W
        if TABLE:
            b_row = token.to(tl.int64) * W_B
        else:
            b_row = row
        s = tl.zeros([HEADS, TOKENS], tl.float32)
        for r in tl.static_range(R_K):
            b_k = tl.load(
                b_ptr + b_row[None, :] + (B_K + r * D + d)[:, None], mask=valid[None, :], other=0.0
            )
            if HALF:
                # feature i < HALF gets x_i cos + x_(i + HALF) sin, its partner x_(i + HALF) cos -
                # x_i sin
                partner = r * D + d // (2 * HALF) * (2 * HALF) + (d + HALF) % (2 * HALF)
                other = tl.load(
                    b_ptr + b_row[None, :] + (B_K + partner)[:, None],
                    mask=valid[None, :],
                    other=0.0,
                )
                angle = token.to(tl.float32)[None, :] * tl.load(frequencies_ptr + d % HALF)[:, None]
                sin = (
                    tl.sin(angle).to(ANGLE_DTYPE).to(tl.float32)
                    * tl.where(d % (2 * HALF) < HALF, 1.0, -1.0)[:, None]
                )
                cos = tl.cos(angle).to(ANGLE_DTYPE).to(tl.float32)
                b_k = (b_k.to(tl.float32) * cos + other.to(tl.float32) * sin).to(b_k.dtype)
            if CONSTANT_A:
                a_k = tl.load(a_k_ptr + r * H + h, mask=real, other=0.0)[:, None]
            else:
                a_k = tl.load(
                    rows_ptr + row[None, :] + (A_K + r * PADDED_H + h)[:, None],
                    mask=real_and_valid,
                    other=0.0,
                )
            s += tl.dot(q, b_k) * a_k.to(tl.float32)
        s = tl.where((token < visible)[None, :], s * SCALE, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        alpha = tl.exp2(m - m_new)
        p = tl.exp2(s - m_new[:, None])
        l = l * alpha + tl.sum(p, 1)
        o = o * alpha[:, None]
        m = m_new
        for r in tl.static_range(R_V):
            b_v = tl.load(
                b_ptr + b_row[:, None] + (B_V + r * E + e)[None, :], mask=valid[:, None], other=0.0
            )
            if CONSTANT_A:
                a_v = tl.load(a_v_ptr + r * H + h, mask=real, other=0.0)[:, None]
            else:
                a_v = tl.load(
                    rows_ptr + row[None, :] + (A_V + r * PADDED_H + h)[:, None],
                    mask=real_and_valid,
                    other=0.0,
                )
            o = tl.dot((p * a_v.to(tl.float32)).to(b_v.dtype), b_v, o)

    out = ((b * SPLITS + split) * N + n) * H + h
    tl.store(o_ptr + out[:, None] * E + e[None, :], o, mask=real[:, None])
    tl.store(m_ptr + out, m, mask=real)
    tl.store(l_ptr + out, l, mask=real)


@triton.jit
def flash_tpa_combine(
    o_ptr,  # [B, SPLITS, N H, E]
    m_ptr,  # [B, SPLITS, N H]
    l_ptr,
    out_ptr,  # [B, N H, E]
    lse_ptr,  # [B, N H]
    NH: tl.constexpr,
    E: tl.constexpr,
    R_V: tl.constexpr,
    SPLITS: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,  # splits read at once
):
    i, b = tl.program_id(0), tl.program_id(1)
    e = tl.arange(0, E)
    split = tl.arange(0, PADDED_SPLITS)
    at = (b * SPLITS + split) * NH + i
    m = tl.load(m_ptr + at, mask=split < SPLITS, other=-1e30)
    l = tl.load(l_ptr + at, mask=split < SPLITS, other=0.0)
    top = tl.max(m, 0)
    total = tl.sum(l * tl.exp2(m - top), 0)
    acc = tl.zeros([E], tl.float32)
    for start in tl.static_range(0, SPLITS, CHUNK):
        split = start + tl.arange(0, CHUNK)
        at = (b * SPLITS + split) * NH + i
        weight = tl.exp2(tl.load(m_ptr + at, mask=split < SPLITS, other=-1e30) - top)
        o = tl.load(o_ptr + at[:, None] * E + e[None, :], mask=(split < SPLITS)[:, None], other=0.0)
        acc += tl.sum(o * weight[:, None], 0)
    seen = total > 0
    safe = tl.where(seen, total, 1.0)
    out = tl.where(seen, acc / (R_V * safe), 0.0)
    tl.store(out_ptr + (b * NH + i) * E + e, out.to(out_ptr.dtype.element_ty))
    LN2: tl.constexpr = 0.6931471805599453
    tl.store(lse_ptr + b * NH + i, tl.where(seen, (top + tl.log2(safe)) * LN2, float("-inf")))
