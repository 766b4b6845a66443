"""The Triton kernel of cross_entropy.py; importing it needs Triton."""

import triton
import triton.language as tl


@triton.jit
def cross_entropy_gradient(
    logits_ptr,  # [N, WIDTH], float32
    targets_ptr,  # [N], int32
    loss_ptr,  # [N]
    grad_ptr,  # [N, WIDTH]
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    start = row.to(tl.int64) * WIDTH
    target = tl.load(targets_ptr + row)
    BLOCKS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK

    highest = float("-inf")
    total = 0.0
    for block in range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + start + column, mask=column < WIDTH, other=float("-inf"))
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    lse = highest + tl.log(total)

    target_logit = 0.0
    for reverse in range(BLOCKS):
        # from the end of the row, which was read last and is likeliest to be in the cache
        column = (BLOCKS - 1 - reverse) * BLOCK + tl.arange(0, BLOCK)
        mask = column < WIDTH
        x = tl.load(logits_ptr + start + column, mask=mask, other=float("-inf"))
        hit = column == target
        grad = tl.exp(x - lse) - tl.where(hit, 1.0, 0.0)
        tl.store(grad_ptr + start + column, grad.to(grad_ptr.dtype.element_ty), mask=mask)
        target_logit += tl.sum(tl.where(hit, x, 0.0), 0)
    tl.store(loss_ptr + row, lse - target_logit)
