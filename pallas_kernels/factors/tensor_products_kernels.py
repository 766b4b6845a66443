"""The Triton kernels of tensor_products.py; importing them needs Triton. A program takes a
token.
"""

import triton
import triton.language as tl


@triton.jit
def tensor_products_expand(
    rows_ptr,  # [N, WIDTH]
    cos_ptr,  # [N, ROTATED_DIM / 2], float32
    sin_ptr,
    out_0_ptr,  # [N, H, D] of PRODUCT_0
    out_1_ptr,
    out_2_ptr,
    PRODUCT_0: tl.constexpr,  # the fields of a Product, or None
    PRODUCT_1: tl.constexpr,
    PRODUCT_2: tl.constexpr,
    ROTATED_DIM: tl.constexpr,  # the D of products that RoPE rotates, 0: none
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,  # at a time
    RANKS: tl.constexpr,  # R padded with zeros
):
    token = tl.program_id(0).to(tl.int64)
    row_ptr = rows_ptr + token * WIDTH
    cos, sin = _tables(cos_ptr, sin_ptr, token, ROTATED_DIM)  # pyright: ignore[reportGeneralTypeIssues] # triton.jit
    _expand(row_ptr, out_0_ptr, token, cos, sin, PRODUCT_0, HEADS, RANKS)
    if PRODUCT_1 is not None:
        _expand(row_ptr, out_1_ptr, token, cos, sin, PRODUCT_1, HEADS, RANKS)
    if PRODUCT_2 is not None:
        _expand(row_ptr, out_2_ptr, token, cos, sin, PRODUCT_2, HEADS, RANKS)


@triton.jit
def tensor_products_contract(
    rows_ptr,  # [N, WIDTH]
    cos_ptr,  # [N, ROTATED_DIM / 2], float32
    sin_ptr,
    grad_0_ptr,  # [N, H, D] of PRODUCT_0
    grad_1_ptr,
    grad_2_ptr,
    rows_grad_ptr,  # [N, WIDTH]
    PRODUCT_0: tl.constexpr,  # the fields of a Product, or None
    PRODUCT_1: tl.constexpr,
    PRODUCT_2: tl.constexpr,
    ROTATED_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    USED: tl.constexpr,  # numbers of a row that the products span
    HEADS: tl.constexpr,
    RANKS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row_ptr, out_ptr = rows_ptr + token * WIDTH, rows_grad_ptr + token * WIDTH
    cos, sin = _tables(cos_ptr, sin_ptr, token, ROTATED_DIM)  # pyright: ignore[reportGeneralTypeIssues] # triton.jit
    _contract(row_ptr, grad_0_ptr, out_ptr, token, cos, sin, PRODUCT_0, HEADS, RANKS)
    if PRODUCT_1 is not None:
        _contract(row_ptr, grad_1_ptr, out_ptr, token, cos, sin, PRODUCT_1, HEADS, RANKS)
    if PRODUCT_2 is not None:
        _contract(row_ptr, grad_2_ptr, out_ptr, token, cos, sin, PRODUCT_2, HEADS, RANKS)
    zeros = tl.zeros([HEADS], rows_grad_ptr.dtype.element_ty)
    for start in range(USED, WIDTH, HEADS):
        column = start + tl.arange(0, HEADS)
        tl.store(out_ptr + column, zeros, mask=column < WIDTH)


@triton.jit
def _tables(cos_ptr, sin_ptr, token, DIM: tl.constexpr):
    """A token's cosines and sines, [1, DIM / 2]; without rotation, anything."""
    HALF: tl.constexpr = DIM // 2 if DIM else 1  # pyright: ignore[reportAssignmentType] # triton.jit
    at = token * HALF + tl.arange(0, HALF)[None, :]
    if DIM:
        cos = tl.load(cos_ptr + at)
        sin = tl.load(sin_ptr + at)
    else:
        cos = tl.zeros([1, 1], tl.float32)
        sin = cos
    return cos, sin


@triton.jit
def _load_b(row_ptr, cos, sin, PRODUCT: tl.constexpr, RANKS: tl.constexpr):
    """b of all ranks after RoPE, which pairs feature i with i + D/2: its halves, [RANKS, D/2]
    each, and where they lie in the row.
    """
    OFFSET_B: tl.constexpr = PRODUCT[1]
    RANK: tl.constexpr = PRODUCT[2]
    DIM: tl.constexpr = PRODUCT[4]
    HALF: tl.constexpr = DIM // 2
    r = tl.arange(0, RANKS)[:, None]
    at = OFFSET_B + r * DIM + tl.arange(0, HALF)[None, :]
    x = tl.load(row_ptr + at, mask=r < RANK, other=0.0)
    y = tl.load(row_ptr + at + HALF, mask=r < RANK, other=0.0)
    if PRODUCT[5]:
        wide_x, wide_y = x.to(tl.float32), y.to(tl.float32)
        x = (wide_x * cos + wide_y * sin).to(x.dtype)
        y = (wide_y * cos - wide_x * sin).to(y.dtype)
    return x, y, at


@triton.jit
def _expand(
    row_ptr,
    out_ptr,
    token,
    cos,
    sin,
    PRODUCT: tl.constexpr,
    HEADS: tl.constexpr,
    RANKS: tl.constexpr,
):
    OFFSET_A: tl.constexpr = PRODUCT[0]
    RANK: tl.constexpr = PRODUCT[2]
    H: tl.constexpr = PRODUCT[3]
    DIM: tl.constexpr = PRODUCT[4]
    HALF: tl.constexpr = DIM // 2
    HEAD_ROOM: tl.constexpr = (H + HEADS - 1) // HEADS * HEADS
    SCALE: tl.constexpr = 1.0 / RANK
    x, y, _ = _load_b(row_ptr, cos, sin, PRODUCT, RANKS)  # pyright: ignore[reportGeneralTypeIssues] # triton.jit
    r = tl.arange(0, RANKS)[:, None]
    d = tl.arange(0, HALF)[None, :]
    out_ptr += token * (H * DIM)
    for first in range(0, H, HEADS):
        head = first + tl.arange(0, HEADS)
        a = tl.load(
            row_ptr + OFFSET_A + r * HEAD_ROOM + head[None, :], mask=r < RANK, other=0.0
        ).trans()
        at = out_ptr + head[:, None] * DIM + d
        mask = (head < H)[:, None]
        tl.store(at, (tl.dot(a, x) * SCALE).to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(at + HALF, (tl.dot(a, y) * SCALE).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _contract(
    row_ptr,
    grad_ptr,
    out_ptr,  # the row's gradient
    token,
    cos,
    sin,
    PRODUCT: tl.constexpr,
    HEADS: tl.constexpr,
    RANKS: tl.constexpr,
):
    OFFSET_A: tl.constexpr = PRODUCT[0]
    RANK: tl.constexpr = PRODUCT[2]
    H: tl.constexpr = PRODUCT[3]
    DIM: tl.constexpr = PRODUCT[4]
    HALF: tl.constexpr = DIM // 2
    HEAD_ROOM: tl.constexpr = (H + HEADS - 1) // HEADS * HEADS
    SCALE: tl.constexpr = 1.0 / RANK
    x, y, b_at = _load_b(row_ptr, cos, sin, PRODUCT, RANKS)  # pyright: ignore[reportGeneralTypeIssues] # triton.jit
    r = tl.arange(0, RANKS)[:, None]
    d = tl.arange(0, HALF)[None, :]
    grad_ptr += token * (H * DIM)
    x_grad = tl.zeros([RANKS, HALF], tl.float32)
    y_grad = tl.zeros([RANKS, HALF], tl.float32)
    for first in range(0, H, HEADS):
        head = first + tl.arange(0, HEADS)
        at = grad_ptr + head[:, None] * DIM + d
        mask = (head < H)[:, None]
        g_x = tl.load(at, mask=mask, other=0.0)
        g_y = tl.load(at + HALF, mask=mask, other=0.0)
        a_at = OFFSET_A + r * HEAD_ROOM + head[None, :]
        a_grad = (tl.dot(x, g_x.trans()) + tl.dot(y, g_y.trans())) * SCALE
        tl.store(out_ptr + a_at, a_grad.to(out_ptr.dtype.element_ty), mask=r < RANK)
        a = tl.load(row_ptr + a_at, mask=r < RANK, other=0.0)
        x_grad = tl.dot(a, g_x, x_grad)
        y_grad = tl.dot(a, g_y, y_grad)
    x_grad *= SCALE
    y_grad *= SCALE
    if PRODUCT[5]:  # the transpose of a rotation rotates the other way
        rotated_x = x_grad * cos - y_grad * sin
        y_grad = y_grad * cos + x_grad * sin
        x_grad = rotated_x
    tl.store(out_ptr + b_at, x_grad.to(out_ptr.dtype.element_ty), mask=r < RANK)
    tl.store(out_ptr + b_at + HALF, y_grad.to(out_ptr.dtype.element_ty), mask=r < RANK)
