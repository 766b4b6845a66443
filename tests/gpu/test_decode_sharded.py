"""t6jax.decode with sequences or heads spread over two GPUs: each runs the kernels on its part, no
part of the cache moves.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import t6jax
from t6jax import TPACache, TPAQuery
from tests.ops.decode.base import draw
from tests.ops.decode.decode_on_four_devices import moved, spread

pytestmark = pytest.mark.skipif(jax.device_count() < 2, reason="needs two NVIDIA GPUs")


def arguments(heads, head_shards):
    f = draw(np.random.default_rng(heads), 4, 2, 700, heads, 6, 2, 2, 64, 64)
    f = {name: jnp.asarray(x, jnp.bfloat16) for name, x in f.items()}
    query = TPAQuery(f.pop("a_q"), f.pop("b_q"))
    return (
        query,
        TPACache.from_factors(**f, head_shards=head_shards),
        jnp.array([0, 1, 333, 700], jnp.int32),
    )


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("over", ["batch", "heads"])
@pytest.mark.parametrize("heads", [34, 47])
@pytest.mark.parametrize("implementation", [None, "triton"])
def test_each_gpu_decodes_its_own_part(kind, over, heads, implementation):
    mesh = jax.make_mesh((2,), ("gpus",), axis_types=(AxisType[kind],), devices=jax.devices()[:2])
    want, want_lse = jax.jit(lambda *a: t6jax.decode(*a, implementation="xla", return_lse=True))(
        *arguments(heads, 1)
    )
    query, cache, lengths = arguments(heads, 2 if over == "heads" else 1)
    axes = dict(batch="gpus", heads=None) if over == "batch" else dict(batch=None, heads="gpus")
    args = spread(mesh, query, cache, lengths, **axes)

    def step(cache, query, entry, lengths):
        cache = cache.append(entry, lengths - 2)
        return t6jax.decode(
            query, cache, lengths, implementation=implementation, return_lse=True
        ), cache

    entry = jax.tree.map(
        lambda x: jnp.stack([x[b, max(n - 2, 0) :][:2] for b, n in enumerate([0, 1, 333, 700])]),
        cache.stored(),
    )
    # sequences 0 and 1 have no two tokens to append: theirs, in front of the cache, are dropped
    entry = jax.tree.map(lambda x: x.at[1, 1].set(x[1, 0]), entry)
    run = jax.jit(step, donate_argnums=0)
    query, cache, lengths = args
    entry = jax.device_put(
        entry, jax.tree.map(lambda x: NamedSharding(mesh, P(axes["batch"])), entry)
    )
    compiled = run.lower(cache, query, entry, lengths).compile()
    assert max(moved(compiled), default=0) <= 4 * 2 * (heads + 1) * 64, (
        "at most the result is put together"
    )
    assert moved(compiled) == [] or (over == "heads" and heads % 2)
    assert any(target in compiled.as_text() for target in ("mosaic_gpu", "triton_kernel_call"))
    assert compiled.memory_analysis().alias_size_in_bytes >= cache._rows.nbytes // 2
    (got, lse), _ = run(cache, query, entry, lengths)
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    # q, P a_v and the output are rounded to bfloat16, half an ulp of 2^-8 each
    assert np.linalg.norm(got - want) < 1e-2 * np.linalg.norm(want)
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(want_lse))
    np.testing.assert_allclose(np.asarray(lse)[2:], np.asarray(want_lse)[2:], atol=5e-2)
