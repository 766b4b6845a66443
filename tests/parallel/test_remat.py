"""What a block keeps for the backward pass, and what it makes again: counted in matrix products."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend import core

from t6jax import ModelConfig
from t6jax.attention import MECHANISMS
from t6jax.model import Block
from t6jax.parallel.remat import checkpointed
from tests.conftest import TINY

# All but one have products with weights alone; where a factor is the same for all tokens, so are
# the products that form queries, keys and values from it.
WITH_FACTORS_OF_EACH_TOKEN = sorted(set(MECHANISMS) - {"tpa_nonctx_a", "tpa_nonctx_b"})


def products(jaxpr: core.Jaxpr, *, with_weights: bool) -> int:
    """The matrix products of a program; with_weights: those without batch axes alone."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive is jax.lax.dot_general_p:
            _, batch_axes = equation.params["dimension_numbers"]
            count += not (with_weights and any(batch_axes))
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, core.ClosedJaxpr)
        ):
            if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
                count += products(getattr(value, "jaxpr", value), with_weights=with_weights)
    return count


@functools.cache
def of_gradient(mechanism: str, remat: str | None, *, with_weights: bool = False) -> int:
    """The products of a block's gradient; remat: what it keeps. None: no rematerialisation."""
    attention = {"name": mechanism, "num_heads": 4, "head_dim": 64}
    config = ModelConfig.from_dict(TINY | {"attention": attention})
    graph, state = nnx.split(nnx.eval_shape(lambda: Block(config, rngs=nnx.Rngs(0))))

    def block(params, carry):
        positions = jnp.broadcast_to(jnp.arange(32), (2, 32))
        return nnx.merge(graph, params)(*carry, positions, None)[:2]

    run = block if remat is None else checkpointed(block, remat, gathers=True, in_loop=False)
    total = lambda *arguments: sum(jnp.sum(x**2) for x in run(*arguments))
    x = jax.ShapeDtypeStruct((2, 32, config.d_model), jnp.float32)
    jaxpr = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(state, (x, x))
    return products(jaxpr.jaxpr, with_weights=with_weights)


@pytest.mark.parametrize("mechanism", sorted(MECHANISMS))
def test_none_makes_no_product_again(mechanism):
    assert of_gradient(mechanism, "none") == of_gradient(mechanism, None)


@pytest.mark.parametrize("mechanism", WITH_FACTORS_OF_EACH_TOKEN)
def test_dots_makes_no_product_with_weights_again(mechanism):
    weights = functools.partial(of_gradient, mechanism, with_weights=True)
    assert weights("dots") == weights(None)
    # the scores of attention, at least, and not attention's output
    assert of_gradient(mechanism, None) < of_gradient(mechanism, "dots")


@pytest.mark.parametrize("mechanism", sorted(MECHANISMS))
def test_full_makes_products_with_weights_again(mechanism):
    weights = functools.partial(of_gradient, mechanism, with_weights=True)
    # gate, up, and W^O at least
    assert weights("full") >= weights("dots") + 3
