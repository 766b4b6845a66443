"""The tensor products that give TPA its name."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.factors import tensor_products
from pallas_kernels.factors.tensor_products import Product
from t6jax.ops.on_gpu import takes_kernels
from t6jax.ops.precision import accumulator, at_least_float32


def combine(
    a: Float[Array, "*#batch R H"], b: Float[Array, "*#batch R D"]
) -> Float[Array, "*batch H D"]:
    """1/R sum_r a_r (x) b_r, eq. 3.1: the dense query, key or value of each token from its factors.

    Leading axes broadcast: a factor that is the same for all tokens needs none. The sum runs in
    float32; the result has the factors' dtype.
    """
    product = jnp.einsum(
        "...rh,...rd->...hd", a, b, preferred_element_type=accumulator(a.dtype, b.dtype)
    )
    return (product / a.shape[-2]).astype(jnp.result_type(a, b))


def vec(
    b: Float[Array, "*batch D_b"], c: Float[Array, "*batch D_c"]
) -> Float[Array, "*batch D_b*D_c"]:
    """vec(b (x) c) of appendix E: the columns b c_1, b c_2, ... after one another, so that RoPE on
    b rotates each.
    """
    product = c[..., :, None] * b[..., None, :]
    return product.reshape(*product.shape[:-2], -1)


def factors(
    rows: Float[Array, "*batch W"], product: Product
) -> tuple[Float[Array, "*batch R H"], Float[Array, "*batch R D"]]:
    """The factors a and b of a product, from the rows that hold all factors of a token."""
    p, room = product, tensor_products.head_room(product.heads)
    a, b = (
        rows[..., p.offset_a : p.offset_a + p.rank * room],
        rows[..., p.offset_b : p.offset_b + p.rank * p.dim],
    )
    a, b = (x.reshape(*rows.shape[:-1], p.rank, -1) for x in (a, b))
    return a[..., : p.heads], b


def expand(
    rows: Float[Array, "B T W"],
    cos: Float[Array, "B T half_D"],
    sin: Float[Array, "B T half_D"],
    products: tuple[Product, ...],
) -> list[Float[Array, "B T H D"]]:
    """Eq. 3.1 with eq. 3.5's RoPE, of each product of the factors in the rows.

    cos, sin: RoPE's tables for the tokens (t6jax.ops.rope). On an NVIDIA GPU, half-precision rows
    go through one kernel, and their gradient through another; everything else is the sum as
    `combine` has it.
    """
    if takes_kernels(rows.dtype, rows) and not tensor_products.unsupported(products, rows.dtype):
        return _expand_kernel(rows, cos, sin, products)
    return _expand_xla(rows, cos, sin, products)


def _expand_xla(rows, cos, sin, products):
    dense = []
    for p in products:
        a, b = factors(rows, p)
        if p.rotate:
            x1, x2 = jnp.split(at_least_float32(b), 2, axis=-1)
            c, s = cos[..., None, :], sin[..., None, :]
            b = jnp.concatenate([x1 * c + x2 * s, x2 * c - x1 * s], axis=-1).astype(b.dtype)
        dense.append(combine(a, b))
    return dense


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _expand_kernel(rows, cos, sin, products):
    dense = tensor_products.expand(*map(_flat, (rows, cos, sin)), products)
    return [x.reshape(*rows.shape[:2], *x.shape[1:]) for x in dense]


def _expand_forward(rows, cos, sin, products):
    return _expand_kernel(rows, cos, sin, products), (rows, cos, sin)


def _expand_backward(products, residuals, grads):
    rows, cos, sin = map(_flat, residuals)
    rows_grad = tensor_products.contract(rows, cos, sin, [_flat(g) for g in grads], products)
    return rows_grad.reshape(residuals[0].shape), None, None


_expand_kernel.defvjp(_expand_forward, _expand_backward)


def _flat(x):
    return x.reshape(-1, *x.shape[2:])
