"""The mesh and the sharding rules: named axes are split as the config says."""

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from configs import common
from t6jax import InputError, ModelConfig
from t6jax.model import abstract
from t6jax.parallel.mesh import MESH_AXES, make_mesh
from t6jax.parallel.placement import Placement, partition_spec, place_parameter, placements
from tests.conftest import TINY

RULES = common.get_config().sharding.to_dict()


def placed(*, rules=RULES, whole=(), **sizes):
    mesh = AbstractMesh(
        tuple(sizes.get(axis, 1) for axis in MESH_AXES), MESH_AXES, axis_types=(AxisType.Auto,) * 4
    )
    return placements(abstract(ModelConfig.from_dict(TINY)), mesh, rules, whole)


def stored(tree):
    return jax.tree.map(lambda p: p.stored, tree)


def test_named_axes_are_split_by_the_rules():
    got = stored(placed(fsdp=2, tensor=2))
    assert got["blocks"]["mlp"]["w_1"] == (("fsdp",), ("tensor",))
    assert got["blocks"]["mlp"]["w_3"] == (("tensor",), ("fsdp",))
    assert got["blocks"]["attention"]["w_b_k"] == (("fsdp",), (), ())


def test_an_axis_that_does_not_divide_is_stored_split_along_another_and_used_split():
    got = placed(fsdp=2, tensor=2)
    # 61 tokens and 5 heads are odd
    assert got["embedding"] == Placement(
        ("vocab", "d_model"), (61, 24), ((), ("fsdp", "tensor")), ("tensor", None)
    )
    assert got["blocks"]["attention"]["w_a_q"].stored == (("fsdp", "tensor"), (), ())
    assert got["blocks"]["attention"]["w_a_q"].axis("heads") == "tensor"
    assert got["blocks"]["attention"]["w_b_q"].used == (None, None, None)
    assert partition_spec(got["blocks"]["attention"]["w_a_q"], 4) == P(
        None, ("fsdp", "tensor"), None, None
    )
    assert place_parameter(("heads",), (5,), {"tensor": 2}, {"heads": ("tensor",)}).stored == (
        (),
    ), "no axis divides"


def test_groups_of_keys_and_values_are_split_only_evenly_and_mixed_heads_not_at_all():
    rules = {"heads": ("tensor",), "kv_heads": ("tensor",)}
    assert place_parameter(("kv_heads",), (3,), {"tensor": 2}, rules).used == (None,)
    assert place_parameter(("kv_heads",), (4,), {"tensor": 2}, rules).used == ("tensor",)
    assert place_parameter(("heads",), (4,), {"tensor": 2}, rules, whole=("heads",)) == Placement(
        ("heads",), (4,), (("tensor",),), (None,)
    )


def test_a_mesh_axis_splits_a_parameter_once_and_several_may_split_one_axis():
    got = stored(placed(fsdp=2, rules=RULES | {"mlp": "fsdp"}))
    assert got["blocks"]["mlp"]["w_1"] == (("fsdp",), ())
    got = stored(placed(fsdp=2, sequence=2, rules=RULES | {"d_model": "fsdp,sequence"}))
    assert got["blocks"]["mlp"]["w_1"] == (("fsdp", "sequence"), ("tensor",))


def test_wrong_meshes_and_rules_are_named():
    one = {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1}
    with pytest.raises(InputError, match=r"mesh \(data 3, .* needs 3 devices and 1 are available"):
        make_mesh(one | {"data": 3})
    with pytest.raises(InputError, match="one of them may be -1"):
        make_mesh(one | {"data": -1, "fsdp": -1})
    with pytest.raises(
        InputError,
        match="sharding.mlp must be '' or of data, fsdp, sequence, tensor, several .* got 'model'",
    ):
        placed(rules=RULES | {"mlp": "model"})
