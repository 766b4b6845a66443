"""The Triton kernels of add_norm.py; importing them needs Triton. A program takes a row."""

import triton
import triton.language as tl


@triton.jit
def add_norm(
    x_ptr,  # [N, WIDTH], as all of them
    update_ptr,
    total_ptr,
    normed_ptr,
    EPSILON: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,  # WIDTH rounded up to a power of 2
):
    start = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    x = tl.load(x_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
    update = tl.load(update_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
    total = (x + update).to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + start + column, total, mask=mask)
    total = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(total * total, 0) / WIDTH + EPSILON)
    normed = (total * scale).to(normed_ptr.dtype.element_ty)
    tl.store(normed_ptr + start + column, normed, mask=mask)


@triton.jit
def add_norm_gradient(
    total_ptr,  # [N, WIDTH], as all of them
    total_grad_ptr,
    normed_grad_ptr,
    grad_ptr,
    EPSILON: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    total = tl.load(total_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(normed_grad_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(total * total, 0) / WIDTH + EPSILON)
    projection = tl.sum(g * total, 0) * scale * scale / WIDTH
    total_grad = tl.load(total_grad_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
    grad = total_grad + scale * (g - total * projection)
    tl.store(grad_ptr + start + column, grad.to(grad_ptr.dtype.element_ty), mask=mask)
