"""Gathering on a mesh of 8 virtual CPU devices, for test_gather.py.

usage: python tests/parallel/gather_on_eight_devices.py, in the repository's root. Prints a line of
JSON: the name of each case -> what failed, or null.
"""

import json
import os
import traceback

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from t6jax.parallel.collectives import written
from t6jax.parallel.gather import LayerGather, embedding_lookup, gathered
from t6jax.parallel.mesh import MESH_AXES, make_mesh
from t6jax.parallel.placement import partition_spec, place_parameter

MESH = make_mesh({"data": 1, "fsdp": 2, "sequence": 2, "tensor": 2})
RULES = {
    "d_model": ("fsdp",),
    **dict.fromkeys(("heads", "mlp", "vocab"), ("tensor",)),
    "both": ("fsdp", "sequence"),
}
# name -> the names of its axes, and its shape; stored and used as in the comments
PARAMETERS = {
    "w_1": (("d_model", "mlp"), (8, 12)),  # fsdp, tensor; in use: -, tensor
    "w_2": (("d_model", "mlp"), (8, 12)),  # the same plan
    "w_3": (("mlp", "d_model"), (12, 8)),  # tensor, fsdp; in use: tensor, -
    "embedding": (("vocab", "d_model"), (13, 8)),  # -, fsdp and tensor; in use: tensor, -
    "heads": (("d_model", "heads"), (6, 5)),  # fsdp, -; in use: -, tensor. 3 rows a device
    "scale": (("heads",), (5,)),  # whole; in use: tensor
    "bias": (("head_dim",), (3,)),  # whole, in use too
    "both": (("both", "head_dim"), (8, 3)),  # fsdp and sequence, -; whole in use
}
SIZES = dict(MESH.shape)
PLACED = {k: place_parameter(*v, SIZES, RULES) for k, v in PARAMETERS.items()}
SPECS = {k: partition_spec(p, len(p.shape)) for k, p in PLACED.items()}
EACH = P(MESH_AXES)  # an axis in front that has an entry for each device


def whole_arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    # of few digits, so that bfloat16 holds them and sums of some are exact
    return {k: draw.integers(-8, 9, s).astype(np.float32) for k, (_, s) in PARAMETERS.items()}


def used_by(name: str, x: np.ndarray, tensor: int) -> np.ndarray:
    """What a device at a place of the tensor axis uses of a whole array: a shard, padded."""
    for k, axis in enumerate(PLACED[name].used):
        if axis:
            n = SIZES[axis]
            x = np.pad(x, [(0, -x.shape[i] % n if i == k else 0) for i in range(x.ndim)])
            x = np.split(x, n, axis=k)[tensor]
    return x


def variables(arrays: dict) -> dict[str, nnx.Param]:
    return {k: nnx.Param(x, placement=PLACED[k]) for k, x in arrays.items()}


def on_each_device(f, *, out_specs=EACH):
    return jax.jit(jax.shard_map(f, mesh=MESH, in_specs=(SPECS,), out_specs=out_specs))


def gather_all(stored: dict, dtype=jnp.float32) -> dict:
    state = variables(stored)
    return {k: v[...] for k, v in LayerGather(state, dtype).gathered(state).items()}


def case_every_device_gets_what_it_uses():
    whole = whole_arrays()
    got = on_each_device(lambda stored: jax.tree.map(lambda x: x[None], gather_all(stored)))(whole)
    for name, x in whole.items():
        assert got[name].shape[0] == 8
        for device, y in enumerate(np.asarray(got[name])):
            # devices are in the order of the mesh's axes, tensor the last
            np.testing.assert_array_equal(y, used_by(name, x, device % 2), err_msg=name)


def case_gradients_of_all_devices_are_summed_and_each_gets_those_of_what_it_stores():
    """A device's loss is its own weights times what it uses of each parameter."""
    whole = whole_arrays()
    draw = np.random.default_rng(1)
    shapes = {k: used_by(k, x, 0).shape for k, x in whole.items()}
    weights = {k: draw.integers(-8, 9, (8, *s)).astype(np.float32) for k, s in shapes.items()}

    def gradient(stored):
        device = jax.lax.axis_index(MESH_AXES)
        own = jax.tree.map(lambda w: jnp.asarray(w)[device], weights)
        total = lambda stored: sum(jnp.sum(x * own[k]) for k, x in gather_all(stored).items())
        grads = jax.grad(total)(stored)
        for name, placement in PLACED.items():
            split = {a for axes in placement.stored for a in axes}
            grads[name] = jax.lax.psum(grads[name], tuple(a for a in MESH_AXES if a not in split))
        return grads

    got = jax.jit(
        jax.shard_map(gradient, mesh=MESH, in_specs=(SPECS,), out_specs=SPECS, check_vma=False)
    )(whole)
    for name, x in whole.items():
        want = jax.grad(
            lambda x, name=name: sum(
                jnp.sum(padded_shard(name, x, device % 2) * weights[name][device])
                for device in range(8)
            )
        )(jnp.asarray(x))
        np.testing.assert_array_equal(got[name], want, err_msg=name)


def padded_shard(name, x, tensor):
    k = next((k for k, axis in enumerate(PLACED[name].used) if axis), None)
    if k is None:
        return x
    x = jnp.pad(x, [(0, x.shape[i] % 2 if i == k else 0) for i in range(x.ndim)])
    return jnp.split(x, 2, axis=k)[tensor]


def case_parameters_with_one_plan_are_sent_as_one_array():
    packed = []

    def count(stored):
        state = variables(stored)
        packed.append(len(LayerGather(state, jnp.float32).pack(state)))
        return jax.tree.map(lambda x: x[None], gather_all(stored))

    traced = on_each_device(count).trace(whole_arrays())
    # two plans are those of two parameters: all that are gathered over fsdp alone have one
    assert packed[0] == len(PARAMETERS) - 3
    sent = {key: n for key, (n, _) in written(traced, SIZES).items()}
    # w_1, w_2, w_3 and heads together; the embedding's own, before and after its all-to-all
    assert sent == {
        ("all-gather", ("fsdp",)): 2,
        ("all-gather", ("fsdp", "sequence")): 1,
        ("all-to-all", ("tensor",)): 1,
    }, sent


def case_unpacking_is_the_inverse_of_packing_where_nothing_is_split():
    state = {k: nnx.Param(x) for k, x in whole_arrays().items()}
    layer = LayerGather(state, jnp.float32)
    assert not layer.is_gathered
    opened = layer.unpack(layer.gather(layer.pack(state)))
    for name, v in state.items():
        np.testing.assert_array_equal(opened[name][...], v[...])


def case_values_are_sent_in_the_computations_dtype_and_gradients_summed_in_float32():
    whole = {"both": np.full((8, 3), 1 + 2**-12, np.float32)}  # bfloat16 rounds it to 1
    specs = {"both": SPECS["both"]}

    def value_and_gradient(stored):
        weight = jnp.where(jax.lax.axis_index(MESH_AXES) == 0, 256, 1).astype(jnp.bfloat16)

        def total(stored):
            x = gather_all(stored, jnp.bfloat16)["both"]
            assert x.dtype == jnp.bfloat16
            return jnp.sum((x * weight).astype(jnp.float32)), x

        (_, x), grads = jax.value_and_grad(total, has_aux=True)(stored)
        return x[None], jax.lax.psum(grads["both"], "tensor")

    value, grads = jax.jit(
        jax.shard_map(
            value_and_gradient,
            mesh=MESH,
            in_specs=(specs,),
            out_specs=(EACH, specs["both"]),
            check_vma=False,
        )
    )(whole)
    np.testing.assert_array_equal(value.astype(np.float32), 1)
    # 256 + 7, which bfloat16 would round to 264
    np.testing.assert_array_equal(grads, 263)


def case_one_parameter_is_gathered_like_a_layer():
    whole = whole_arrays()

    def each(stored):
        state = variables(stored)
        return {k: gathered(v)[None] for k, v in state.items()}

    got = on_each_device(each)(whole)
    want = on_each_device(lambda s: jax.tree.map(lambda x: x[None], gather_all(s)))(whole)
    for name in whole:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def case_rows_of_a_split_embedding_are_looked_up_and_their_gradients_are_sums():
    table = {"embedding": whole_arrays()["embedding"]}
    specs = {"embedding": SPECS["embedding"]}
    tokens = jnp.array([[0, 6, 7, 12], [12, 12, 3, 0]])  # a shard ends at 7; 13 are odd

    def rows_and_gradient(stored):
        lookup = lambda s: embedding_lookup(variables(s)["embedding"], tokens, jnp.float32)
        # all devices have the same tokens: each counts for an eighth
        grads = jax.grad(lambda s: jnp.sum(lookup(s)) / 8)(stored)["embedding"]
        return lookup(stored)[None], jax.lax.psum(grads, ("sequence",))

    rows, grads = jax.jit(
        jax.shard_map(
            rows_and_gradient,
            mesh=MESH,
            in_specs=(specs,),
            out_specs=(EACH, specs["embedding"]),
            check_vma=False,
        )
    )(table)
    for of_device in np.asarray(rows):
        np.testing.assert_array_equal(of_device, table["embedding"][tokens])
    counts = np.bincount(np.ravel(tokens), minlength=13)
    np.testing.assert_array_equal(grads, np.repeat(counts[:, None], 8, axis=1))


CASES = {
    name.removeprefix("case_"): case for name, case in globals().items() if name.startswith("case_")
}


def failure(case) -> str | None:
    try:
        case()
    except Exception:
        return traceback.format_exc()
    return None


if __name__ == "__main__":
    print(json.dumps({name: failure(case) for name, case in CASES.items()}))
