"""The Triton kernel of swiglu.py; importing it needs Triton."""

import triton
import triton.language as tl


@triton.jit
def swiglu_gradient(
    gate_ptr,  # SIZE numbers, as all of them
    up_ptr,
    grad_ptr,
    gate_grad_ptr,
    up_grad_ptr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    mask = start + i < SIZE
    a = tl.load(gate_ptr + start + i, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(up_ptr + start + i, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad_ptr + start + i, mask=mask, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-a))
    gate_grad = (g * b * s * (1.0 + a * (1.0 - s))).to(gate_grad_ptr.dtype.element_ty)
    up_grad = (g * a * s).to(up_grad_ptr.dtype.element_ty)
    tl.store(gate_grad_ptr + start + i, gate_grad, mask=mask)
    tl.store(up_grad_ptr + start + i, up_grad, mask=mask)
