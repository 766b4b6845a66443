"""Queries, keys and values from their factors, and gradients back to the factors, each in one pass
over memory (Triton).

One matrix product with all factor maps gives a token's factors as one row. `expand` reads the rows
and writes 1/R sum_r a_r (x) RoPE(b_r) for each Product (eqs. 3.1 and 3.5); `contract` is its
transpose. Moving the dense arrays once bounds both: a program, of one warp, takes one token, keeps
its B factors in registers and loops over its heads. Sums over ranks, heads and features are small
matrix products on the tensor cores, with ranks padded to 16 by zeros.

Both need jax-triton.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from pallas_kernels.batching import row_wise
from pallas_kernels.triton_launch import launch, unavailable

HEADS = 16  # that a program works on at a time
RANKS = 16  # the least that a matrix product takes
DIMS = (32, 64, 128)
MAX_PRODUCTS = 3  # queries, keys and values
# blocks of heads are loaded several ahead of their use: one after another, a program would wait
# for memory each time
CONTRACT_STAGES = 4


@dataclasses.dataclass(frozen=True)
class Product:
    """Where the factors of a query, key or value lie in a row.

    Attributes:
        offset_a: Start of a, rank by rank; a rank takes head_room(heads) numbers, of which those
            after the heads are not used.
        offset_b: Start of b, rank by rank; a rank takes dim numbers.
        rank: R.
        heads: H.
        dim: D.
        rotate: Whether RoPE rotates b.
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

    def without_first(self, count: int) -> "Product":
        """The same product in rows without their first `count` numbers."""
        return dataclasses.replace(
            self, offset_a=self.offset_a - count, offset_b=self.offset_b - count
        )


def head_room(heads: int) -> int:
    """Numbers that a rank of a takes in a row: heads rounded up to HEADS, so that all loads are
    aligned.
    """
    return -(-heads // HEADS) * HEADS


def unsupported(products: Sequence[Product], dtype: DTypeLike) -> str | None:
    """Why the kernels do not take these products of rows of this dtype, or None."""
    if len(products) > MAX_PRODUCTS:
        return f"at most {MAX_PRODUCTS} products, not {len(products)}"
    if any(p.dim not in DIMS for p in products):
        return f"D must be one of {', '.join(map(str, DIMS))}"
    if len({p.dim for p in products if p.rotate}) > 1:
        return "all products that RoPE rotates must have the same D"
    if len({p.offset_b for p in products}) < len(products):
        return "each product must have its own b"
    if any(p.rank > RANKS for p in products):
        return f"ranks must be at most {RANKS}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"rows must be bfloat16 or float16, not {jnp.dtype(dtype)}"
    return unavailable()


def expand(
    rows: Float[Array, "N W"],
    cos: Float[Array, "N half_D"],
    sin: Float[Array, "N half_D"],
    products: Sequence[Product],
) -> list[Float[Array, "N _ _"]]:
    """The dense arrays of N tokens, eq. 3.1 with eq. 3.5's RoPE; sums run in float32.

    Args:
        rows: The factors, bfloat16 or float16.
        cos: RoPE's cosines for each token, float32.
        sin: RoPE's sines for each token, float32.
        products: Where the factors lie.

    Returns:
        An array [N, H, D] for each product, in the rows' dtype.

    Raises:
        NotImplementedError: The kernel does not take the products; see `unsupported`.
    """
    _check(rows, products)

    def run(rows, cos, sin):
        from pallas_kernels.factors import tensor_products_kernels

        shapes = [(rows.shape[0], p.heads, p.dim) for p in products]
        return launch(
            *(rows, cos, sin),
            kernel=tensor_products_kernels.tensor_products_expand,
            out_shape=[jax.ShapeDtypeStruct(shape, rows.dtype) for shape in shapes],
            grid=(rows.shape[0],),
            num_warps=1,
            **_constants(rows, products, "out"),
        )

    return row_wise(run)(rows, cos, sin)


def contract(
    rows: Float[Array, "N W"],
    cos: Float[Array, "N half_D"],
    sin: Float[Array, "N half_D"],
    grads: Sequence[Float[Array, "N _ _"]],
    products: Sequence[Product],
) -> Float[Array, "N W"]:
    """The gradient of the rows from those of the dense arrays: the transpose of `expand`.

    Args:
        rows: As in `expand`.
        cos: As in `expand`.
        sin: As in `expand`.
        grads: The gradient [N, H, D] of each product's dense array.
        products: As in `expand`.

    Returns:
        The gradient, in the rows' dtype; zeros after the last number that a product reads.

    Raises:
        NotImplementedError: The kernel does not take the products; see `unsupported`.
    """
    _check(rows, products)

    def run(rows, cos, sin, *grads):
        from pallas_kernels.factors import tensor_products_kernels

        missing = [rows] * (MAX_PRODUCTS - len(products))  # not looked at
        return launch(
            *(rows, cos, sin, *grads, *missing),
            kernel=tensor_products_kernels.tensor_products_contract,
            out_shape=[jax.ShapeDtypeStruct(rows.shape, rows.dtype)],
            grid=(rows.shape[0],),
            num_warps=1,
            num_stages=CONTRACT_STAGES,
            USED=max(p.stop for p in products),
            **_constants(rows, products),
        )[0]

    return row_wise(run)(rows, cos, sin, *grads)


def _check(rows: Array, products: Sequence[Product]) -> None:
    if reason := unsupported(products, rows.dtype):
        raise NotImplementedError(f"tensor_products: {reason}")


def _constants(rows: Array, products: Sequence[Product], outputs: str | None = None) -> dict:
    """The constants of both kernels; and, where each product has an output, None for the pointers
    of those that are missing.
    """
    constants: dict[str, Any] = {"WIDTH": rows.shape[1], "HEADS": HEADS, "RANKS": RANKS}
    for i in range(MAX_PRODUCTS):
        given = i < len(products)
        constants[f"PRODUCT_{i}"] = dataclasses.astuple(products[i]) if given else None
        if outputs and not given:
            constants[f"{outputs}_{i}_ptr"] = None
    constants["ROTATED_DIM"] = max((p.dim for p in products if p.rotate), default=0)
    return constants
