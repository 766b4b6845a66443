"""Q, K and V from their factors and back: eq. 3.1 with eq. 3.5's RoPE and its transpose, in
float64, interpreted on the CPU.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.factors.tensor_products import Product, contract, expand, head_room, unsupported
from tests.pallas_kernels.lowering import triton_kernels

# heads, features, ranks of q, k, v or of k, v
SHAPES = [
    (78, 64, (6, 2, 2)),
    (47, 64, (2, 3)),
    (1, 32, (1, 16, 2)),
    (16, 128, (2, 1, 1)),
    (34, 128, (1, 1)),
]


def layout(heads, dim, ranks):
    """Products in rows of A's, then B's, and a width with room behind them."""
    sizes = [r * head_room(heads) for r in ranks] + [r * dim for r in ranks]
    starts = np.cumsum([0, *sizes])
    n = len(ranks)
    products = [
        Product(int(starts[i]), int(starts[n + i]), r, heads, dim, rotate=i < n - 1)
        for i, r in enumerate(ranks)
    ]
    return tuple(products), int(starts[-1]) + 21


def draw(heads, dim, ranks, tokens=3, seed=0):
    products, width = layout(heads, dim, ranks)
    random = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.bfloat16)
    angle = random.uniform(0, 1000, (tokens, dim // 2))
    tables = [jnp.asarray(f(angle), jnp.float32) for f in (np.cos, np.sin)]
    return products, normal(tokens, width), tables, [normal(tokens, heads, dim) for _ in products]


def rotation(cos, sin, dim):
    """The matrix [tokens, D, D] that b is multiplied with on its right."""
    half = dim // 2
    matrix = np.zeros((len(cos), dim, dim))
    i = np.arange(half)
    matrix[:, i, i], matrix[:, i + half, i + half] = cos, cos
    matrix[:, i + half, i], matrix[:, i, i + half] = sin, -sin
    return matrix


def reference(products, rows, tables, grads=None, size=lambda x: x):
    """What expand, or with gradients contract, gives; with size=abs, the sum of the sizes of all
    terms instead.
    """
    rows, *tables = (np.asarray(x, np.float64) for x in (rows, *tables))
    dense, back = [], np.zeros_like(rows)
    for p, grad in zip(products, grads or [None] * len(products), strict=True):
        turn = (
            rotation(*tables, p.dim)
            if p.rotate
            else np.broadcast_to(np.eye(p.dim), (len(rows), p.dim, p.dim))
        )
        room = head_room(p.heads)
        a = rows[:, p.offset_a : p.offset_a + p.rank * room].reshape(-1, p.rank, room)[
            :, :, : p.heads
        ]
        b = rows[:, p.offset_b : p.offset_b + p.rank * p.dim].reshape(-1, p.rank, p.dim)
        a, b, turn = size(a), size(b), size(turn)
        turned = np.einsum("nrd,nde->nre", b, turn)
        dense.append(np.einsum("nrh,nrd->nhd", a, turned) / p.rank)
        if grad is not None:
            g = size(np.asarray(grad, np.float64)) / p.rank
            a_grad = np.einsum("nhd,nrd->nrh", g, turned)
            padded = np.pad(a_grad, ((0, 0), (0, 0), (0, room - p.heads)))
            b_grad = np.einsum("nhd,nrh,ned->nre", g, a, turn)
            back[:, p.offset_a : p.offset_a + p.rank * room] = padded.reshape(len(rows), -1)
            back[:, p.offset_b : p.offset_b + p.rank * p.dim] = b_grad.reshape(len(rows), -1)
    return dense if grads is None else back


# b is rounded to bfloat16 after RoPE and so is the result: 2^-8 of the terms' sizes each, and
# float32's share beside it
BOUND = 2 * 2**-8 * 1.01


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("triton_interpreter")
def test_expand_is_eq_3_1(shape):
    products, rows, tables, _ = draw(*shape)
    got = expand(rows, *tables, products)
    for x, want, size in zip(
        got,
        reference(products, rows, tables),
        reference(products, rows, tables, size=np.abs),
        strict=True,
    ):
        assert x.dtype == rows.dtype
        assert (np.abs(np.asarray(x, np.float64) - want) <= BOUND * size).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("triton_interpreter")
def test_contract_is_the_transpose_of_expand(shape):
    products, rows, tables, grads = draw(*shape)
    got = np.asarray(contract(rows, *tables, grads, products), np.float64)
    want, size = (reference(products, rows, tables, grads, size=f) for f in (lambda x: x, np.abs))
    assert (np.abs(got - want) <= BOUND * size).all()  # zeros where no product reads


@pytest.mark.parametrize("shape", SHAPES)
def test_both_lower_for_an_nvidia_gpu(shape):
    products, rows, tables, grads = draw(*shape)
    assert triton_kernels(functools.partial(expand, products=products), rows, *tables) == [
        "tensor_products_expand"
    ]
    back = lambda *args: contract(*args, products)
    assert triton_kernels(back, rows, *tables, grads) == ["tensor_products_contract"]


@pytest.mark.usefixtures("triton_interpreter")
def test_what_the_kernels_do_not_take_is_said():
    (k, v), _ = layout(5, 64, (2, 2))
    say = lambda *products, dtype=jnp.bfloat16: unsupported(products, dtype)
    replaced = lambda **changes: Product(**(vars(k) | changes))
    assert say(k, v) is None
    assert "D must be one of 32, 64, 128" in say(replaced(dim=48))
    assert "same D" in say(k, replaced(offset_b=0, dim=32))
    assert "its own b" in say(k, replaced(rank=1))
    assert "at most 16" in say(replaced(rank=17))
    assert "float32" in say(k, v, dtype=jnp.float32)
    with pytest.raises(NotImplementedError, match="tensor_products: rows must be"):
        expand(jnp.zeros((1, 500)), jnp.zeros((1, 32)), jnp.zeros((1, 32)), (k, v))
