"""What the wheel's core does without any extra; test_wheel.py runs it outside the checkout."""

import importlib
import importlib.metadata
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

import pallas_kernels
import t6jax
from t6jax.runs import CHECKPOINTS, PARAMETERS, write_config
from t6jax.training.metrics import MetricsLog

MODEL = {
    "vocab_size": 61,
    "num_layers": 1,
    "d_model": 16,
    "context_length": 32,
    "dtype": "float32",
    "attention": {"name": "tpa", "num_heads": 2, "head_dim": 8, "rank_q": 2},
}
IMPORTS = {
    "data": lambda folder: importlib.import_module("t6jax.data.batches"),
    "eval": lambda folder: importlib.import_module("t6jax.evaluation.harness"),
    "train": lambda folder: MetricsLog(folder, 0, tensorboard=True),
    "interop": lambda folder: importlib.import_module("t6jax.interop.from_reference"),
}


def the_wheel_is_installed_whole() -> None:
    assert t6jax.__version__ == importlib.metadata.version("t6jax")
    for package in (t6jax, pallas_kernels):
        folder = pathlib.Path(package.__file__).parent
        assert folder.is_relative_to(sys.prefix), folder
        assert (folder / "py.typed").is_file()
    assert (pathlib.Path(t6jax.__file__).parent / "evaluation" / "paper_results.json").is_file()


def decode_is_attention_over_the_factors() -> None:
    draw = np.random.default_rng(0)
    B, M, H, D, R = 2, 5, 2, 16, 2  # D=16: the smallest that every implementation takes
    shapes = {"a_q": (B, 1, R, H), "b_q": (B, 1, R, D)}
    shapes |= {f"a_{x}": (B, M, R, H) for x in "kv"} | {f"b_{x}": (B, M, R, D) for x in "kv"}
    arrays = {name: draw.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    q, k, v = (np.einsum("btrh,btrd->bthd", arrays[f"a_{x}"], arrays[f"b_{x}"]) / R for x in "qkv")
    p = np.exp(np.einsum("bnhd,bmhd->bnhm", q, k) / np.sqrt(D))
    want = np.einsum("bnhm,bmhd->bnhd", p / p.sum(-1, keepdims=True), v)
    factors = {name: jnp.asarray(x) for name, x in arrays.items()}
    cache = t6jax.TPACache.from_factors(*(factors[n] for n in ("a_k", "b_k", "a_v", "b_v")))
    got = jax.jit(t6jax.decode)(t6jax.TPAQuery(factors["a_q"], factors["b_q"]), cache)
    # float32 sums of at most M * D * R products of order 1, in another order
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def a_loaded_checkpoint_generates_as_the_model_that_was_saved(folder: pathlib.Path) -> None:
    config = t6jax.ModelConfig.from_dict(MODEL)
    model = t6jax.T6(config, rngs=nnx.Rngs(0))
    step = folder / CHECKPOINTS / "0"
    step.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(step.absolute() / PARAMETERS, nnx.to_pure_dict(nnx.state(model)))
    write_config(folder, {"model": config.to_dict()})
    loaded, read = t6jax.load(folder)
    assert read == config
    want, got = (t6jax.generate(m, [[1, 2, 3], [4]], 8) for m in (model, loaded))
    assert [len(tokens) for tokens in got] == [8, 8]
    assert got == want


def what_an_extra_brings_is_asked_for_in_one_sentence(folder: pathlib.Path) -> None:
    for extra, use in IMPORTS.items():
        try:
            use(folder)
        except t6jax.InputError as e:
            assert isinstance(e, ImportError)
            assert str(e).endswith(f"is not installed: pip install 't6jax[{extra}]'"), e
        else:
            raise AssertionError(f"nothing of {extra} is missing: is this the core alone?")


if __name__ == "__main__":
    run = pathlib.Path(sys.argv[1])
    the_wheel_is_installed_whole()
    decode_is_attention_over_the_factors()
    a_loaded_checkpoint_generates_as_the_model_that_was_saved(run)
    what_an_extra_brings_is_asked_for_in_one_sentence(run)
    print("the core works")
