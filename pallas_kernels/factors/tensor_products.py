"""Queries, keys and values from their factors, and gradients back to the factors, each in one pass
over memory (Triton).

A token's factors lie side by side in one row, as one matrix product with all factor maps makes
them. `expand` reads the rows and writes 1/R sum_r a_r (x) RoPE(b_r) for each Product (eqs. 3.1 and
3.5); `contract` is its transpose. Both are bound by moving the dense arrays once: a program, one
warp, takes one token, keeps its B factors in registers and goes over its heads. Sums over ranks,
heads and features are small matrix products on the tensor cores, ranks filled up with zeros to 16.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

HEADS = 16  # that a program works on at a time
RANKS = 16  # the least that a matrix product takes
DIMS = (32, 64, 128)


@dataclasses.dataclass(frozen=True)
class Product:
    """Where the factors of a query, key or value lie in a row: a at offset_a, b at offset_b, rank
    by rank.

    A rank of a takes head_room(heads) numbers, of which those behind the heads are not used; one of
    b takes dim.
    rotate: whether RoPE turns b.
    """

    offset_a: int
    offset_b: int
    rank: int
    heads: int
    dim: int
    rotate: bool

    @property
    def stop(self) -> int:
        """Where the last of its factors ends."""
        return max(
            self.offset_a + self.rank * head_room(self.heads), self.offset_b + self.rank * self.dim
        )

    def behind(self, start: int) -> "Product":
        """The same in rows without their first `start` numbers."""
        return dataclasses.replace(
            self, offset_a=self.offset_a - start, offset_b=self.offset_b - start
        )


def head_room(heads: int) -> int:
    """Numbers that a rank of a takes in a row: up to a multiple of HEADS, so that all loads are
    aligned.
    """
    return pl.cdiv(heads, HEADS) * HEADS


def unsupported(products, dtype) -> str | None:
    """Why the kernels do not take these products, or None."""
    if any(p.dim not in DIMS for p in products):
        return f"D must be one of {', '.join(map(str, DIMS))}"
    if len({p.dim for p in products if p.rotate}) > 1:
        return "all that RoPE turns must have the same D"
    if len({p.offset_b for p in products}) < len(products):
        return "each product must have its own b"
    if any(p.rank > RANKS for p in products):
        return f"ranks must be at most {RANKS}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"rows must be bfloat16 or float16, not {jnp.dtype(dtype)}"
    return None


def expand(rows, cos, sin, products, *, interpret=False):
    """The dense arrays [N, H, D] of N tokens, one for each of a tuple of Products, in the rows'
    dtype; sums run in float32.

    rows      [N, W], bfloat16 or float16: the factors
    cos, sin  [N, D/2], float32: RoPE's of each token
    """
    _check(rows, products)
    shapes = [jax.ShapeDtypeStruct((rows.shape[0], p.heads, p.dim), rows.dtype) for p in products]
    kernel = functools.partial(_expand_kernel, products=products)
    return _call(kernel, rows.shape[0], shapes, 1, "tensor_products_expand", interpret)(
        rows, cos, sin
    )


def contract(rows, cos, sin, grads, products, *, interpret=False):
    """The gradient of the rows [N, W] from the dense arrays' gradients [N, H, D], a list; zeros
    where no product reads.

    The other arguments are expand's; the result has the rows' dtype.
    """
    _check(rows, products)
    kernel = functools.partial(_contract_kernel, products=products)
    shape = jax.ShapeDtypeStruct(rows.shape, rows.dtype)
    # blocks of heads are loaded several ahead of their use: one after another, a program would wait
    # for memory each time
    return _call(kernel, rows.shape[0], shape, 4, "tensor_products_contract", interpret)(
        rows, cos, sin, *grads
    )


def _check(rows, products):
    reason = unsupported(products, rows.dtype)
    if reason:
        raise NotImplementedError(f"tensor_products: {reason}")


def _call(kernel, tokens, shapes, stages, name, interpret):
    return pl.pallas_call(
        kernel,
        grid=(tokens,),
        out_shape=shapes,
        compiler_params=plgpu.CompilerParams(num_warps=1, num_stages=stages),
        interpret=interpret,
        name=name,
    )


def _numbers(start, rows, row_stride, columns):
    """Places in a token's row of a table [rows, columns] whose rows lie row_stride apart."""
    return start + jnp.arange(rows)[:, None] * row_stride + jnp.arange(columns)[None, :]


def _b_halves(rows, token, p, tables):
    """b of all ranks after RoPE, which pairs feature i with i + D/2: its two halves, each [RANKS,
    D/2], zeros behind R.
    """
    half = p.dim // 2
    mask = jnp.broadcast_to((jnp.arange(RANKS) < p.rank)[:, None], (RANKS, half))
    places = (_numbers(p.offset_b + i * half, RANKS, p.dim, half) for i in range(2))
    x1, x2 = (plgpu.load(rows.at[token, place], mask=mask, other=0) for place in places)
    if not p.rotate:
        return x1, x2
    cos, sin = tables
    wide = x1.astype(jnp.float32), x2.astype(jnp.float32)
    return (wide[0] * cos + wide[1] * sin).astype(x1.dtype), (wide[1] * cos - wide[0] * sin).astype(
        x1.dtype
    )


def _a_block(p, first):
    """Places in a token's row of a [RANKS, HEADS] from head `first` on, and which of the ranks are
    there.
    """
    there = jnp.broadcast_to((jnp.arange(RANKS) < p.rank)[:, None], (RANKS, HEADS))
    return _numbers(p.offset_a + first, RANKS, head_room(p.heads), HEADS), there


def _tables(cos, sin, token, products):
    """cos and sin of a token, [1, D/2], where a product needs them."""
    dims = [p.dim for p in products if p.rotate]
    return (
        [plgpu.load(table.at[token, pl.ds(0, dims[0] // 2)])[None, :] for table in (cos, sin)]
        if dims
        else None
    )


def _dense(ref, token, first, p, i):
    """Half i of the features of HEADS heads of a token, and which of the heads are there."""
    half = p.dim // 2
    there = first + jnp.arange(HEADS) < p.heads
    return ref.at[token, pl.ds(first, HEADS), pl.ds(i * half, half)], jnp.broadcast_to(
        there[:, None], (HEADS, half)
    )


def _expand_kernel(rows, cos, sin, *outs, products):
    token = pl.program_id(0)
    tables = _tables(cos, sin, token, products)
    for p, out in zip(products, outs, strict=True):
        b = _b_halves(rows, token, p, tables)

        def block(index, _, p=p, out=out, b=b):
            first = index * HEADS
            places, mask = _a_block(p, first)
            a = plgpu.load(rows.at[token, places], mask=mask, other=0)
            for i in range(2):
                total = plgpu.dot(a, b[i], trans_a=True) * (1 / p.rank)
                place, mask = _dense(out, token, first, p, i)
                plgpu.store(place, total.astype(out.dtype), mask=mask)

        jax.lax.fori_loop(0, pl.cdiv(p.heads, HEADS), block, None)


def _contract_kernel(rows, cos, sin, *refs, products):
    grads, out = refs[:-1], refs[-1]
    token = pl.program_id(0)
    tables = _tables(cos, sin, token, products)
    for p, grad in zip(products, grads, strict=True):
        half = p.dim // 2
        b = _b_halves(rows, token, p, tables)

        def block(index, b_grads, p=p, grad=grad, b=b):
            first = index * HEADS
            tiles = [_dense(grad, token, first, p, i) for i in range(2)]
            g = [plgpu.load(place, mask=mask, other=0) for place, mask in tiles]
            places, mask = _a_block(p, first)
            a_grad = sum(plgpu.dot(b[i], g[i], trans_b=True) for i in range(2)) * (1 / p.rank)
            plgpu.store(out.at[token, places], a_grad.astype(out.dtype), mask=mask)
            a = plgpu.load(rows.at[token, places], mask=mask, other=0)
            return [b_grads[i] + plgpu.dot(a, g[i]) for i in range(2)]

        zeros = [jnp.zeros((RANKS, half), jnp.float32)] * 2
        y1, y2 = (
            y * (1 / p.rank) for y in jax.lax.fori_loop(0, pl.cdiv(p.heads, HEADS), block, zeros)
        )
        if p.rotate:  # the transpose of a rotation turns the other way
            cos_t, sin_t = tables
            y1, y2 = y1 * cos_t - y2 * sin_t, y2 * cos_t + y1 * sin_t
        mask = jnp.broadcast_to((jnp.arange(RANKS) < p.rank)[:, None], (RANKS, half))
        for i, y in enumerate((y1, y2)):
            place = out.at[token, _numbers(p.offset_b + i * half, RANKS, p.dim, half)]
            plgpu.store(place, y.astype(out.dtype), mask=mask)
    used, width = max(p.stop for p in products), out.shape[1]
    if used < width:
        zeros = jnp.zeros((HEADS,), out.dtype)

        def clear(index, _):
            start = used + index * HEADS
            plgpu.store(
                out.at[token, pl.ds(start, HEADS)], zeros, mask=start + jnp.arange(HEADS) < width
            )

        jax.lax.fori_loop(0, pl.cdiv(width - used, HEADS), clear, None)
