"""Parameters and cached numbers, counted from the real arrays, are Table 1's."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs import common
from t6jax.parallel.mesh import MESH_AXES
from t6jax.parallel.placement import placements
from tests.attention.cases import CASES, D_MODEL, build


def size(tree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def table_1(c) -> tuple[int, int]:
    """(numbers cached a token, parameters without head_norm) of a mechanism, by Table 1 and section
    H.
    """
    d, h, d_h = D_MODEL, c.num_heads, c.head_dim
    if c.name in ("mha", "gqa", "mqa"):
        g = {"mha": h, "mqa": 1}.get(c.name) or c.num_kv_heads
        return 2 * g * d_h, d * h * d_h + 2 * d * g * d_h + h * d_h * d
    if c.name == "mfa":
        return 2 * d_h, d * d_h + h * d_h * d_h + 2 * d * d_h + h * d_h * d
    if c.name == "mla":
        # Table 1, and what it leaves out: W^O, and the weights of the latents' norms
        d_c, d_q, d_r = c.kv_rank, c.q_rank, c.rope_dim
        table = d_q * (d + h * d_h + h * d_r) + d * d_r + d_c * (d + 2 * h * d_h)
        return d_c + d_r, table + h * d_h * d + d_q + d_c
    r_k, r_v = c.rank_k, c.rank_v
    b = c.dim_b + c.dim_c if c.name == "tpa_order3" else d_h
    b_sets = r_k if c.shared_kv_b else r_k + r_v
    if c.name == "tpa_kvonly":
        return (r_k + r_v) * h + b_sets * b, d * ((r_k + r_v) * h + b_sets * b) + 2 * d * h * d_h
    a_sets, b_sets_all = c.rank_q + r_k + r_v, c.rank_q + b_sets
    if c.name == "tpa_nonctx_a":
        return b_sets * b, a_sets * h + b_sets_all * d * b + d * h * d_h
    if c.name == "tpa_nonctx_b":
        return (r_k + r_v) * h, a_sets * d * h + b_sets_all * b + d * h * d_h
    return (r_k + r_v) * h + b_sets * b, d * (a_sets * h + b_sets_all * b) + d * h * d_h


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_counts_are_table_1s(config):
    cached, parameters = table_1(config)
    module = build(config)
    room = lambda m: size(module.empty_entry(3, m))
    assert config.cached_numbers_per_token == cached
    assert room(8) - room(7) == 3 * cached
    assert config.parameter_count(D_MODEL) == parameters + config.head_norm * config.head_dim
    assert size(nnx.state(module)) == config.parameter_count(D_MODEL)


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_the_cache_has_the_computations_dtype(config):
    module = build(config, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(lambda: module.empty_cache(1, 2)))} == {
        jnp.dtype("bfloat16")
    }


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_every_parameters_axes_have_a_sharding_rule(config):
    rules = common.get_config().sharding.to_dict()
    module = build(config)
    mesh = jax.sharding.AbstractMesh((1, 1, 1, config.num_heads), MESH_AXES)
    placed = placements(module, mesh, rules)
    for name, placement in placed.items():
        assert set(placement.names) <= set(rules)
        if "heads" in placement.names and config.num_heads > 1:
            assert placement.axis("heads") == "tensor"
            assert placement.stored[placement.names.index("heads")] == ("tensor",), name
    assert placed["w_o"].names[0] == "heads"
