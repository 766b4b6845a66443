"""The mesh and the rules: named axes go where the config says, and a split run gives an unsplit one's losses."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from configs import common
from t6jax import InputError, ModelConfig
from t6jax.model import abstract
from t6jax.training.sharding import MESH_AXES, make_mesh, parameter_shardings
from tests.conftest import TINY, command, process_options

RULES = common.get_config().sharding.to_dict()


def specs(sizes, rules=RULES):
    mesh = AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    shardings = parameter_shardings(nnx.state(abstract(ModelConfig.from_dict(TINY))), mesh, rules)
    return jax.tree.map(lambda s: s.spec, shardings)


def test_named_axes_lie_where_the_rules_say():
    got = specs((1, 2, 2))
    assert got["embedding"] == P(None, "fsdp")  # 61 rows are odd
    assert got["blocks"]["mlp"]["w_1"] == P(None, "fsdp", "tensor")
    assert got["blocks"]["mlp"]["w_3"] == P(None, "tensor", "fsdp")
    assert got["blocks"]["attention"]["w_b_k"] == P(None, "fsdp", None, None)
    assert got["blocks"]["attention"]["w_a_q"] == P(None, "fsdp", None, None)  # 5 heads are odd


def test_a_mesh_axis_splits_a_parameter_once():
    got = specs((1, 2, 1), RULES | {"mlp": "fsdp"})
    assert got["blocks"]["mlp"]["w_1"] == P(None, "fsdp", None)


def test_wrong_meshes_and_rules_are_named():
    one = {"data": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(InputError, match=r"mesh \(data 3, .* does not multiply to the 1 devices"):
        make_mesh(one | {"data": 3})
    with pytest.raises(InputError, match="one of them may be -1"):
        make_mesh(one | {"data": -1, "fsdp": -1})
    with pytest.raises(InputError, match="sharding.mlp must be one of data, fsdp, tensor"):
        specs((1, 1, 1), RULES | {"mlp": "model"})


@pytest.mark.slow
def test_over_fsdp_only_parameters_are_gathered_and_only_gradients_summed():
    """The compiled step of four devices sends no activation: nothing with batch and sequence axes goes through a collective."""
    code = """
import re, jax, jax.numpy as jnp
from configs import common
from t6jax.config import ModelConfig
from t6jax.training.sharding import make_mesh
from t6jax.training.step import Trainer
config = common.get_config()
config.update(batch_size=16)
config.mesh.update(data=1, fsdp=4)
config.model.update(vocab_size=512, num_layers=2, d_model=64, context_length=48, dtype="float32")
config.model.attention.update(num_heads=4, head_dim=16)
config = config.to_dict()
trainer = Trainer(config, ModelConfig.from_dict(config["model"]), make_mesh(config["mesh"]))
batch = jax.ShapeDtypeStruct((16, 49), jnp.int32, sharding=trainer.batch_sharding)
text = trainer.step.lower(trainer.abstract_arrays(), batch).compile().as_text()
for line in text.splitlines():
    if found := re.search(r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(-start)?\\(", line):
        print(found[2], found[1])
"""
    options = process_options()
    options["env"] |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    run = [sys.executable, "-c", code.replace("\\\\", "\\")]
    done = subprocess.run(run, **options, check=True, capture_output=True)
    collectives = done.stdout.splitlines()
    assert any(line.startswith("all-gather") for line in collectives), "parameters are gathered where they are used"
    activations = [line for line in collectives if re.search(r"\[(16|4),4[89],", line)]
    # but for the lookup in the embedding, whose features are split: token ids go out, each device's features come back
    assert not [line for line in activations if not re.search(r"\[16,48,1\]|\[4,48,1,16\]", line)]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 2}, {"data": 1, "fsdp": 2}, {"data": 1, "tensor": 2}])
def test_a_run_split_over_two_devices_gives_one_devices_losses(tmp_path, mesh):
    def losses(name, devices, sizes):
        flags = [f"--config.mesh.{axis}={size}" for axis, size in sizes.items()]
        flags += [f"--workdir={tmp_path / name}", "--config.steps=12", "--config.optimizer.decay_steps=240"]
        options = process_options()
        options["env"] |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        run = command("train.py", "--config=tests/configs/tiny.py", *flags)
        subprocess.run(run, **options, check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [line["train_loss"] for line in lines if "train_loss" in line]

    # The sums of a batch are taken in another order: 12 steps, each off by a few epsilon of sums of some 100 terms, that
    # Adam's division lets grow to at most the learning rate's share of a weight
    single, split = losses("one", 1, {"data": 1}), losses("two", 2, mesh)
    assert len(single) == 12
    np.testing.assert_allclose(split, single, rtol=1e-5)
