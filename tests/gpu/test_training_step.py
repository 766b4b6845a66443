"""On an NVIDIA GPU: the kernels of the training step are their formulas, and training with them
goes as it goes without.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import common
from t6jax import T6, ModelConfig
from t6jax.config import RunConfig
from t6jax.ops import implementation as implementations
from t6jax.ops.attention import mosaic_gpu
from t6jax.parallel.mesh import make_mesh
from t6jax.training.step import Trainer
from tests.pallas_kernels.elementwise import test_elementwise
from tests.pallas_kernels.factors import test_tensor_products
from tests.pallas_kernels.lowering import triton_kernels_in


@pytest.mark.parametrize("shape", test_tensor_products.SHAPES)
def test_tensor_products_on_the_gpu(shape):
    test_tensor_products.test_expand_is_eq_3_1(shape)
    test_tensor_products.test_contract_is_the_transpose_of_expand(shape)


def test_what_lies_between_matrix_products_on_the_gpu():
    for width in (1, 100, 1600):
        test_elementwise.test_add_norm_is_the_sum_and_its_rms_norm(width)
        test_elementwise.test_the_gradient_of_add_norm_is_that_of_the_formula(width)
        test_elementwise.test_the_gradient_of_swiglu_is_that_of_the_formula((3, width))
    for width in (1, 61, 50304):
        for scale in (1, 300):
            test_elementwise.test_cross_entropy_and_its_gradient_are_those_of_the_formula(
                width, scale
            )


def small(**changes) -> dict:
    config = common.get_config()
    config.update(batch_size=8)
    config.model.update(num_layers=4, d_model=512, context_length=256, vocab_size=1000, unroll=True)
    config.model.attention.update(num_heads=11, head_dim=64)
    config.optimizer.update(
        learning_rate=3e-3, warmup_steps=20, decay_steps=200, min_learning_rate=3e-4
    )
    config.model.update(changes)
    return config.to_dict()


def test_the_step_runs_through_the_kernels():
    config = small()
    trainer = Trainer(RunConfig.from_dict(config), make_mesh(config["mesh"]))
    windows = jax.ShapeDtypeStruct((8, 257), jnp.int32, sharding=trainer.batch_sharding)
    text = trainer.step.lower(trainer.abstract_arrays(), windows).as_text()
    assert set(triton_kernels_in(text)) == {
        "tensor_products_expand",
        "tensor_products_contract",
        "add_norm",
        "add_norm_gradient",
        "swiglu_gradient",
        "cross_entropy_gradient",
    }
    assert "attention_forward" in text and "attention_gradient" in text and "cudnn" not in text


def without_kernels(monkeypatch):
    """Everything through XLA, attention through cuDNN."""

    def cudnn_or_xla(op, refusals, *_):
        return ("cudnn",) if op == "causal_attention" and refusals["cudnn"]() is None else ()

    for where in ("residual", "swiglu", "tensor_product", "cross_entropy"):
        monkeypatch.setattr(f"t6jax.ops.{where}.choose", cudnn_or_xla)
    monkeypatch.setattr(implementations, "choose", cudnn_or_xla)
    monkeypatch.setattr(mosaic_gpu, "unsupported_gradient", lambda *_: "cuDNN is to be taken")
    for where in ("layers", "attention.factored"):
        monkeypatch.setattr(f"t6jax.{where}.worth_copying_weights", lambda _: False)


def losses(config: dict, steps: int = 200) -> np.ndarray:
    """Of a text of 64 tokens, each one of four that follow the one before it."""
    trainer = Trainer(RunConfig.from_dict(config), make_mesh(config["mesh"]))
    state, random, found = trainer.create(jax.random.key(0)), np.random.default_rng(0), []
    following = random.integers(0, 64, (64, 4))
    for _ in range(steps):
        rows = [random.integers(0, 64, 8)]
        for _ in range(256):
            rows.append(following[rows[-1], random.integers(0, 4, 8)])
        state, metrics = trainer.step(
            state, jax.device_put(np.stack(rows, 1).astype(np.int32), trainer.batch_sharding)
        )
        found.append(metrics["train_loss"])
    return np.asarray(found)


def test_two_hundred_steps_go_as_in_the_plain_implementation(monkeypatch):
    """bfloat16 with the kernels stays as near to float32 as bfloat16 without them does."""
    fast = losses(small())
    without_kernels(monkeypatch)
    plain, exact = losses(small(unroll=False)), losses(small(unroll=False, dtype="float32"))
    assert (
        exact[-20:].mean() < 1.6 < 6 < exact[:3].mean()
    )  # ln 4 = 1.39 is what the text leaves to guess
    noise, ours = (np.sqrt(np.mean((x - exact) ** 2)) for x in (plain, fast))
    print(f"root mean square distance from float32: plain {noise:.5f}, with kernels {ours:.5f}")
    assert ours < 2 * noise


def test_parameters_gradients_are_the_plain_ones_within_bfloat16(monkeypatch):
    config = dataclasses.replace(ModelConfig.from_dict(small()["model"]), num_layers=2)
    graph, state = nnx.split(T6(config, rngs=nnx.Rngs(0)))
    keys = iter(jax.random.split(jax.random.key(1), 100))
    state = jax.tree.map(
        lambda x: x if x.any() else 0.02 * jax.random.normal(next(keys), x.shape), state
    )
    rows = jax.random.randint(jax.random.key(2), (8, 257), 0, 1000)
    make = lambda graph: (
        lambda state: jax.grad(lambda s: nnx.merge(graph, s).loss(rows[:, :-1], rows[:, 1:]))(state)
    )
    fast = jax.jit(make(graph))(state)
    without_kernels(monkeypatch)
    plain = jax.jit(make(graph))(state)
    wide = dataclasses.replace(config, dtype="float32")
    exact = jax.jit(make(nnx.split(T6(wide, rngs=nnx.Rngs(0)))[0]))(state)
    for x, y, z in zip(*map(jax.tree.leaves, (fast, plain, exact)), strict=True):
        distance = [
            float(jnp.linalg.norm(g.astype(jnp.float32) - z) / jnp.linalg.norm(z)) for g in (x, y)
        ]
        assert distance[0] < 2 * distance[1] + 2**-9, distance
