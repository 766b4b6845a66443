"""t6jax.decode on sequences and heads that are spread over a mesh; run by test_decode_sharded.py,
where there are four devices.

The kernels' own partitioning is held to the same: in the place of a kernel stands Algorithm 1 on
what a device is given.
"""

import functools
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import t6jax
from pallas_kernels.decode import flash_tpa, partition
from pallas_kernels.decode.cache_layout import CacheLayout
from t6jax import FixedFactors, InputError, TPACache, TPAEntry, TPAQuery
from t6jax.ops import implementation as implementations
from t6jax.ops.decode import xla
from tests.ops.decode.base import draw

B, N, M = 4, 2, 24
LENGTHS = [0, 1, 17, 24]
CASES = {
    "contextual": (),
    "fixed a": ("a_k", "a_v"),
    "fixed b": ("b_k", "b_v"),
    "shared b": (),
}


@pytest.fixture(params=["auto", "explicit"])
def mesh(request):
    kind = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}[request.param]
    return jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(kind, kind))


@pytest.fixture(params=["xla", "kernel"])
def implementation(request, monkeypatch):
    if request.param == "kernel":
        in_its_place = types.SimpleNamespace(check=lambda *_: None, attend=attend)
        monkeypatch.setitem(flash_tpa.KERNELS, "mosaic_gpu", in_its_place)
        take = lambda kernel, definition, *arguments, **_: kernel(*arguments)
        monkeypatch.setattr(implementations, "by_platform", take)
        return "mosaic_gpu"
    return "xla"


def attend(query, rows, lengths, a, b, layout, *, rotation, scale, dtype):
    """What mosaic_gpu.attend does, in plain JAX."""
    shares = len(lengths) // len(rows)
    rows = (
        rows.reshape(len(rows), -1, shares, layout.width)
        .swapaxes(1, 2)
        .reshape(len(lengths), -1, layout.width)
    )
    fixed = FixedFactors(a_k=a[0], a_v=a[1]) if a else FixedFactors()
    if b:
        b_k = b[0][:, : layout.b_v].reshape(-1, layout.rank_k, layout.dim_k)
        assert rotation is None
        fixed = fixed._replace(
            b_k=b_k[0], b_v=b[0][0, layout.b_v :].reshape(layout.rank_v, layout.dim_v)
        )
    query = TPAQuery(*query) if len(query) == 2 else query[0]
    out, lse = xla.decode(query, TPACache(rows, layout), lengths, fixed, scale=scale)
    return out.astype(dtype), lse


def arguments(heads, case="contextual", head_shards=1, dense=False):
    f = {
        name: jnp.asarray(x)
        for name, x in draw(np.random.default_rng(0), B, N, M, heads, 3, 2, 2, 8, 8).items()
    }
    query = TPAQuery(f.pop("a_q"), f.pop("b_q"))
    fixed = FixedFactors(**{name: f[name][0, 0] for name in CASES[case]})
    f |= dict.fromkeys(CASES[case])
    if case == "shared b":
        f["b_v"] = None
    query = jnp.einsum("bnrh,bnrd->bnhd", *query) if dense else query
    cache = TPACache.from_factors(**f, fixed=fixed, head_shards=head_shards)
    return query, cache, jnp.array(LENGTHS), fixed


def decode(query, cache, lengths, fixed, **options):
    return t6jax.decode(query, cache, lengths, fixed=fixed, **options)


def spread(mesh, query, cache, lengths, batch="data", heads="tensor"):
    """The arguments on the mesh, the query's heads too where they divide."""
    cache = jax.device_put(cache, cache.sharding(mesh, batch=batch, heads=heads))
    a, *_ = query if isinstance(query, TPAQuery) else (query,)
    axis = 3 if isinstance(query, TPAQuery) else 2
    split = heads if heads and a.shape[axis] % mesh.shape[heads] == 0 else None
    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    if isinstance(query, TPAQuery):
        query = TPAQuery(place(query.a, batch, None, None, split), place(query.b, batch))
    else:
        query = place(query, batch, None, split)
    return query, cache, place(lengths, batch)


def moved(compiled):
    """How many numbers devices send one another, message by message."""
    messages = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= (.*?) (?:{messages})(?:-start)?\(", compiled.as_text())
    shapes = [re.findall(r"\[([\d,]*)\]", x) for x in found]
    return [max(math.prod(int(n) for n in dims.split(",") if n) for dims in x) for x in shapes]


@pytest.mark.parametrize(
    ("heads", "case", "dense"),
    [
        *((6, case, False) for case in CASES),
        (6, "contextual", True),
        (6, "fixed a", True),
        (5, "contextual", False),
    ],
)
def test_each_device_decodes_its_own_sequences_and_heads(mesh, implementation, heads, case, dense):
    want = decode(*arguments(heads, case, dense=dense), implementation="xla", return_lse=True)
    whole = arguments(heads, case, head_shards=2, dense=dense)
    for got, one in zip(
        decode(*whole, implementation=implementation, return_lse=True), want, strict=True
    ):
        np.testing.assert_allclose(
            got, one, rtol=1e-5, atol=1e-5
        )  # on one device, two shares one after another
    *whole, fixed = whole
    args = *spread(mesh, *whole), fixed
    run = jax.jit(lambda *a: decode(*a, implementation=implementation, return_lse=True))
    compiled = run.lower(*args).compile()
    if heads % 2 == 0:
        assert not moved(compiled)
        out, lse = compiled(*args)
        assert (out.sharding.spec[0], out.sharding.spec[2]) == ("data", "tensor"), out.sharding
    else:  # the result alone is put together: it has no even split
        assert max(moved(compiled), default=0) <= B * N * (heads + 1) * 8
        out, lse = compiled(*args)
    for got, one in zip((out, lse), want, strict=True):
        # sums of at most M + R float32 terms, in another order
        np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(want[1]))


@pytest.mark.parametrize("heads", [6, 5])
def test_appending_and_growing_is_in_place_on_each_device(mesh, implementation, heads):
    query, cache, *_ = arguments(heads, head_shards=2)
    entry = jax.tree.map(lambda x: x[:, :N], cache.stored())
    whole = t6jax.TPACache.empty(
        B,
        M,
        num_heads=heads,
        rank_k=2,
        rank_v=2,
        key_dim=8,
        value_dim=8,
        dtype=jnp.float32,
        head_shards=2,
    )
    query, cache, lengths = spread(mesh, query, whole, jnp.array([2, 5, 9, 24]))
    a = "tensor" if heads % 2 == 0 else None
    place = lambda x, axis: jax.device_put(x, NamedSharding(mesh, P("data", None, None, axis)))
    entry = TPAEntry(*map(place, entry, (a, None, a, None)))

    def step(cache, query, entry, lengths):
        cache = cache.append(entry, lengths - N)
        return t6jax.decode(query, cache, lengths, implementation=implementation), cache

    run = jax.jit(step, donate_argnums=0)
    compiled = run.lower(cache, query, entry, lengths).compile()
    assert max(moved(compiled), default=0) <= B * N * (heads + 1) * 8
    assert heads % 2 or not moved(compiled)
    assert compiled.memory_analysis().alias_size_in_bytes == cache._rows.nbytes // 4
    for grown in (0, 1, 6):
        off_mesh = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), (query, entry, lengths))
        want, whole = step(whole, *off_mesh[:2], jnp.minimum(off_mesh[2] + grown, M))
        got, cache = run(cache, query, entry, jnp.minimum(lengths + grown, M))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        assert cache._rows.sharding.is_equivalent_to(
            whole.sharding(mesh, batch="data", heads="tensor")._rows, 4
        )
    assert run._cache_size() == 1


@pytest.mark.parametrize("mapped", ["all", "query and lengths"])
def test_vmap_of_spread_sequences(mesh, implementation, mapped):
    query, cache, lengths = spread(mesh, *arguments(6)[:3], heads=None)
    two = lambda x, change=lambda x: x: jax.tree.map(lambda x: jnp.stack([x, change(x)]), x)
    queries, caches, many = (
        two(query, jnp.negative),
        two(cache, lambda x: 2 * x),
        two(lengths, lambda x: x // 2),
    )
    decode = lambda *a: t6jax.decode(*a, implementation=implementation)
    if mapped == "all":
        got = jax.jit(jax.vmap(decode))(queries, caches, many)
    else:
        got = jax.jit(jax.vmap(decode, in_axes=(0, None, 0)))(queries, cache, many)
    for i in range(2):
        at = lambda x, i=i: jax.tree.map(lambda x: x[i], x)
        want = t6jax.decode(
            at(queries), at(caches) if mapped == "all" else cache, at(many), implementation="xla"
        )
        np.testing.assert_allclose(got[i], want, rtol=1e-5, atol=1e-5)


def test_what_does_not_divide_is_named():
    mesh = jax.make_mesh((2, 2), ("data", "tensor"))
    _, cache, *_ = arguments(6)
    with pytest.raises(
        InputError, match="heads='tensor': a cache of head_shards=1 cannot be spread over 2 devices"
    ):
        cache.sharding(mesh, heads="tensor")
    with pytest.raises(InputError, match="batch='rows' is no axis of the mesh"):
        cache.sharding(mesh, batch="rows")


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_lowered_for_cuda_each_device_runs_the_kernel_on_its_part(monkeypatch, kind):
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(kind, kind))
    layout = CacheLayout(47, 2, 2, 64, 64, head_shards=2)
    array = lambda spec, *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(
        shape, dtype, sharding=NamedSharding(mesh, P(*spec))
    )
    query = array(["data"], 4, 1, 6, 47), array(["data"], 4, 1, 6, 64)
    arguments = (
        query,
        array(["data", None, "tensor"], 4, 256, 2, layout.width),
        array(["data"], 4, dtype=jnp.int32),
    )
    rules = []

    class Recorded(partition.custom_partitioning):
        def def_partition(self, rule, **options):
            rules.append(rule)
            super().def_partition(rule, **options)

    monkeypatch.setattr(partition, "custom_partitioning", Recorded)
    decode = jax.jit(functools.partial(flash_tpa.decode, layout=layout, return_lse=True))
    text = decode.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    if kind == AxisType.Auto:  # the kernel comes in when the program is compiled: by this rule
        assert "CustomSPMDPartitioning" in text and "mosaic_gpu" not in text
        split = [
            array(["data", None, None, "tensor"], 4, 1, 6, 2, 24),
            query[1],
            *arguments[1:],
        ]
        _, part, results, places = rules[0](mesh, split, None)
        assert [x.spec for x in results] == [
            P("data", None, "tensor", None, None),
            P("data", None, "tensor", None),
        ]
        local = [
            jax.ShapeDtypeStruct(p.shard_shape(x.shape), x.dtype)
            for p, x in zip(places, split, strict=True)
        ]
        text = jax.jit(part).trace(*local).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text
    assert f"tensor<2x256x1x{layout.width}xbf16>" in text, (
        "half of the sequences, half of the heads"
    )
