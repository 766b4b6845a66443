"""The tensor products that give TPA its name."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.factors import tensor_products
from pallas_kernels.factors.tensor_products import Product
from t6jax.ops.implementation import by_platform, choose
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
    *,
    implementation: str | None = None,
) -> list[Float[Array, "B T H D"]]:
    """Eq. 3.1 with eq. 3.5's RoPE, of each product of the factors in the rows.

    Args:
      rows: [B, T, W], the factors of each token next to each other.
      cos, sin: float32 [B, T, D/2], RoPE's tables for the tokens (t6jax.ops.rope).
      products: where the factors of each product lie in a row.
      implementation: "triton" (NVIDIA GPUs, half precision, one kernel for all products, one for
        their gradient), "xla" or None, the faster one that takes the call.

    Returns:
      An array [B, T, H, D] in the rows' dtype for each product; sums run in float32.

    Raises:
      NotImplementedError: the named implementation does not take the call.
    """
    refuse = lambda: tensor_products.unsupported(products, rows.dtype)
    kind = lambda: f"{rows.dtype}, " + ", ".join(f"R={p.rank} D={p.dim}" for p in products)
    if choose("expand", {"triton": refuse}, implementation, kind):
        return _expand(rows, cos, sin, products, implementation)
    return _expand_xla(rows, cos, sin, products)


def _expand_xla(rows: Array, cos: Array, sin: Array, products: tuple[Product, ...]) -> list[Array]:
    dense = []
    for p in products:
        a, b = factors(rows, p)
        if p.rotate:
            x1, x2 = jnp.split(at_least_float32(b), 2, axis=-1)
            c, s = cos[..., None, :], sin[..., None, :]
            b = jnp.concatenate([x1 * c + x2 * s, x2 * c - x1 * s], axis=-1).astype(b.dtype)
        dense.append(combine(a, b))
    return dense


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _expand(
    rows: Array, cos: Array, sin: Array, products: tuple[Product, ...], named: str | None
) -> list[Array]:
    kernel = functools.partial(_expand_triton, products=products)
    definition = functools.partial(_expand_xla, products=products)
    return by_platform(kernel, definition, rows, cos, sin, implementation=named)


def _forward(
    rows: Array, cos: Array, sin: Array, products: tuple[Product, ...], named: str | None
) -> tuple[list[Array], tuple]:
    return _expand(rows, cos, sin, products, named), (rows, cos, sin)


def _backward(
    products: tuple[Product, ...], named: str | None, residuals: tuple, grads: list[Array]
) -> tuple[Array, None, None]:
    kernel = functools.partial(_contract_triton, products=products)

    def definition(rows: Array, cos: Array, sin: Array, *grads: Array) -> Array:
        expand = lambda rows: _expand_xla(rows, cos, sin, products)
        return jax.vjp(expand, rows)[1](list(grads))[0]

    rows_grad = by_platform(kernel, definition, *residuals, *grads, implementation=named)
    return rows_grad, None, None


_expand.defvjp(_forward, _backward)


def _expand_triton(
    rows: Array, cos: Array, sin: Array, *, products: tuple[Product, ...]
) -> list[Array]:
    dense = tensor_products.expand(_tokens(rows), _tokens(cos), _tokens(sin), products)
    return [x.reshape(*rows.shape[:2], *x.shape[1:]) for x in dense]


def _contract_triton(
    rows: Array, cos: Array, sin: Array, *grads: Array, products: tuple[Product, ...]
) -> Array:
    flat_grads = [_tokens(g) for g in grads]
    return tensor_products.contract(
        _tokens(rows), _tokens(cos), _tokens(sin), flat_grads, products
    ).reshape(rows.shape)


def _tokens(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])
