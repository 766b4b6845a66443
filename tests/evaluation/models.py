"""Small float32 models with random parameters, W^O and W_3 included, for the evaluation's tests."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from configs import common
from t6jax.config import ModelConfig
from t6jax.evaluation.packing import Request
from t6jax.model import T6, abstract
from t6jax.runs import CHECKPOINTS, PARAMETERS, write_checksums, write_config

ATTENTION = {
    "tpa": {"name": "tpa", "num_heads": 3, "head_dim": 8, "rank_q": 3, "rank_k": 2, "rank_v": 1},
    "mha": {"name": "mha", "num_heads": 2, "head_dim": 8},
    "mla": {"name": "mla", "num_heads": 2, "head_dim": 8, "kv_rank": 6, "q_rank": 8, "rope_dim": 4},
    "tpa_nonctx_b": {
        "name": "tpa_nonctx_b",
        "num_heads": 3,
        "head_dim": 8,
        "rank_q": 2,
        "rank_k": 2,
        "rank_v": 2,
    },
}


def config(mechanism: str = "tpa", **settings) -> ModelConfig:
    base = {
        "vocab_size": 61,
        "num_layers": 2,
        "d_model": 16,
        "context_length": 32,
        "dtype": "float32",
    }
    return ModelConfig.from_dict(base | {"attention": ATTENTION[mechanism]} | settings)


def random_model(model_config: ModelConfig, seed: int = 0) -> T6:
    """Parameters of a size that gives logits of order 1, so that the next token depends on all that
    precede it.
    """
    graph, state = nnx.split(abstract(model_config))
    random = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(0.3 * random.standard_normal(x.shape), x.dtype)
    return nnx.merge(graph, jax.tree.map(draw, state))


def save_run(workdir: pathlib.Path, model: T6, step: int = 1) -> pathlib.Path:
    """A run's directory with the model as its one checkpoint, and bytes for tokens."""
    settings = common.get_config().to_dict()
    settings["model"] = model.config.to_dict()
    settings["data"] |= {"path": "", "source": "nowhere", "tokenizer": "bytes"}
    write_config(workdir, settings)
    with ocp.StandardCheckpointer() as checkpointer:
        path = (workdir / CHECKPOINTS / str(step) / PARAMETERS).absolute()
        checkpointer.save(path, nnx.to_pure_dict(nnx.state(model)))
    write_checksums(path.parent, settings)
    return workdir


class Alone:
    """The log-likelihood of a request by a forward pass over its tokens alone: the definition."""

    def __init__(self, model: T6, max_length: int | None = None):
        self.max_length = model.config.context_length if max_length is None else max_length
        self._log_softmax = jax.jit(lambda tokens: jax.nn.log_softmax(model(tokens)))

    def __call__(self, request: Request) -> tuple[float, bool]:
        # in a window of W tokens the last W + 1 are scored at most, since the last is no input
        whole = [*request.context, *request.continuation][-(self.max_length + 1) :]
        inputs, wanted = whole[:-1], np.array(request.continuation)
        # zeros behind them are seen by none of them; without, each length would be compiled
        padded = jnp.array(inputs + [0] * (self.max_length - len(inputs)))[None]
        scored = np.asarray(self._log_softmax(padded))[0, len(inputs) - len(wanted) : len(inputs)]
        total = scored[np.arange(len(wanted)), wanted].astype(np.float64).sum()
        return float(total), bool((scored.argmax(axis=-1) == wanted).all())
