"""The training step: losses fall, micro-batches change nothing, the seed decides how it starts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from t6jax.config import RunConfig
from t6jax.evaluation.validation import make_loss_sums
from t6jax.ops.cross_entropy import cross_entropy
from t6jax.parallel.mesh import make_mesh
from t6jax.training.step import Trainer

EPSILON = np.finfo(np.float32).eps


def trainer(config: dict) -> Trainer:
    return Trainer(RunConfig.from_dict(config), make_mesh(config["mesh"]))


def windows(config: dict):
    shape = (config["batch_size"], config["model"]["context_length"] + 1)
    return jnp.asarray(np.random.default_rng(0).integers(0, 257, shape), jnp.int32)


def test_cross_entropy_is_minus_log_softmax():
    logits = np.random.default_rng(0).standard_normal((3, 7)) * 10
    targets = np.array([0, 3, 6])
    want = -np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[np.arange(3), targets]
    got = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(targets))
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * EPSILON * np.abs(logits).max())


def reference(t: Trainer, params: dict, batch) -> tuple[jax.Array, dict]:
    """The mean loss and its gradient, by differentiating the model as a whole."""

    def loss(params):
        model = nnx.merge(t.graph, params)
        return jnp.mean(cross_entropy(model(batch[:, :-1]), batch[:, 1:]))

    return jax.jit(jax.value_and_grad(loss))(params)


def noisy(params: dict) -> dict:
    """Parameters whose zeros are none: the output projections begin at zero, and hide gradients."""
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: x + 0.1 * jnp.asarray(draw.standard_normal(x.shape), x.dtype), params
    )


def test_the_gradient_is_that_of_the_mean_loss_and_its_norm_is_logged_unclipped(run_config):
    """Adam hides the gradient's scale: losses under it do not show it."""
    run_config["optimizer"]["clip_norm"], run_config["model"]["num_layers"] = 1e-3, 1
    t = trainer(run_config | {"accumulation_steps": 2})
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), t.abstract_state)
    batch = windows(run_config)
    state = dataclasses.replace(zeros, params=noisy(zeros.params))
    want_loss, want = reference(t, state.params, batch)
    norm = float(optax.tree.norm(want))
    assert norm > 0.1, "far above what it is clipped to"
    state, metrics = t.step(state, batch)
    assert float(metrics["train_loss"]) == pytest.approx(float(want_loss), rel=1e-6)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    # what Adam's first moment has of it: clipped, times 1 - beta_1
    got = optax.tree.get(state.opt_state, "mu")
    for (path, g), w in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        w = w * (1e-3 / norm * (1 - 0.9))
        # sums over 64 tokens in another order
        np.testing.assert_allclose(
            g, w, rtol=0, atol=64 * EPSILON * np.abs(w).max(), err_msg=str(path)
        )


def test_the_sums_of_a_validation_are_those_of_the_rows_that_are_not_masked(run_config):
    run_config["model"]["num_layers"] = 1
    t = trainer(run_config)
    batch = windows(run_config)
    params = noisy(jax.tree.map(lambda x: jnp.zeros(x.shape), t.abstract_state.params))
    of_tokens = lambda p: cross_entropy(nnx.merge(t.graph, p)(batch[:, :-1]), batch[:, 1:])
    nats = jax.jit(of_tokens)(params)
    for mask in ([1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]):
        total, tokens = t.loss_sums(params, batch, np.array(mask, np.float32))
        want = float(np.asarray(nats)[np.array(mask, bool)].sum())
        assert float(total) == pytest.approx(want, rel=1e-5) and float(tokens) == 16 * sum(mask)


def test_steps_lower_the_loss(run_config):
    t = trainer(run_config)
    state, batch = t.create(jax.random.key(0)), windows(run_config)
    model = nnx.merge(t.graph, jax.tree.map(jnp.copy, state.params))
    loss = jnp.mean(cross_entropy(model(batch[:, :-1]), batch[:, 1:]))
    losses = []
    for _ in range(8):
        state, metrics = t.step(state, batch)
        losses.append(float(metrics["train_loss"]))
    # compiled as a whole and not, a mean over 64 tokens and sums of up to 64 terms in each layer
    assert abs(losses[0] - float(loss)) < 64 * EPSILON * float(loss)
    assert losses[0] == losses[1], "the first step's learning rate is 0"
    assert losses[-1] < losses[0] - 0.05
    assert int(state.step) == 8


def test_micro_batches_give_the_whole_batchs_losses(run_config):
    start = trainer(run_config).create(jax.random.key(0))

    def losses(accumulation):
        t = trainer(run_config | {"accumulation_steps": accumulation})
        state, batch = jax.tree.map(jnp.copy, start), windows(run_config)  # steps donate the state
        out = []
        for _ in range(6):
            state, metrics = t.step(state, batch)
            out.append(float(metrics["train_loss"]))
        return out

    # the mean is taken in another order; Adam's division by the root of v lets tiny gradients'
    # rounding through, at most learning rate times a relative error of the order of 1e-5 a step
    whole = losses(1)
    for micro_batches in (2, 4):
        np.testing.assert_allclose(losses(micro_batches), whole, rtol=1e-5)


def test_the_initial_state_depends_on_the_seed_alone(run_config):
    t = trainer(run_config)
    same = t.create(jax.random.key(3)).params, t.create(jax.random.key(3)).params
    jax.tree.map(np.testing.assert_array_equal, *same)
    assert not np.array_equal(t.create(jax.random.key(4)).params["embedding"], same[0]["embedding"])


def test_the_state_is_updated_in_place(run_config):
    t = trainer(run_config)
    compiled = t.step.lower(t.abstract_arrays(), windows(run_config)).compile()
    size = sum(
        x.size * x.dtype.itemsize
        for x in jax.tree.leaves(jax.eval_shape(t.create, jax.random.key(0)))
    )
    assert compiled.memory_analysis().alias_size_in_bytes >= size - 64  # all but a few scalars


def test_document_masking_reaches_the_losses(run_config):
    config = RunConfig.from_dict(run_config)
    batch = windows(run_config).at[:, 5].set(256)
    masked = Trainer(config, make_mesh(run_config["mesh"]), document_start=256)
    # the output projections start at zero: without noise attention would not affect the loss
    draw = np.random.default_rng(1)
    noise = lambda x: x + 0.1 * jnp.asarray(draw.standard_normal(x.shape), x.dtype)
    params = jax.tree.map(noise, masked.create(jax.random.key(0)).params)
    mask = np.ones(len(batch), np.float32)
    mean = lambda sums: float(sums[0] / sums[1])
    loss, everywhere = (
        mean(t.loss_sums(params, batch, mask)) for t in (masked, trainer(run_config))
    )
    assert abs(loss - everywhere) > 1e-4
    evaluated = make_loss_sums(masked.graph, 256)(params, batch, mask)
    assert mean(evaluated) == pytest.approx(loss, rel=1e-5)
    # and those of the step, whose parameters are those before it
    state = masked.create(jax.random.key(0))
    state = dataclasses.replace(state, params=jax.tree.map(jnp.copy, params))
    _, metrics = masked.step(state, batch)
    assert float(metrics["train_loss"]) == pytest.approx(loss, rel=1e-5)
