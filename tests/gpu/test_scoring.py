"""On an NVIDIA GPU packed scores are, within bfloat16, those of a float32 forward pass over each
request alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t6jax.evaluation.scoring import Scorer
from t6jax.model import abstract
from tests.evaluation.models import Alone, config, random_model
from tests.evaluation.test_scoring import requests_of_every_kind

ATTENTION = {
    "tpa": {"name": "tpa", "num_heads": 6, "head_dim": 64, "rank_q": 3, "rank_k": 2, "rank_v": 2},
    "mha": {"name": "mha", "num_heads": 2, "head_dim": 64},
}


@pytest.mark.parametrize("mechanism", ATTENTION)
def test_packed_scores_are_within_bfloat16_of_float32_alone(mechanism):
    wide = config(attention=ATTENTION[mechanism], d_model=64)
    model = random_model(wide)
    graph, _ = nnx.split(abstract(dataclasses.replace(wide, dtype="bfloat16")))
    half = nnx.merge(graph, nnx.state(model))
    scorer = Scorer(half, batch_tokens=2048)
    requests = requests_of_every_kind()
    lowered = scorer._program.lower(
        scorer.params, *([np.zeros((8, 64), np.int32)] * 4), *arrays(512)
    )
    assert "cudnn" in lowered.as_text()
    with jax.default_matmul_precision("highest"):
        alone = Alone(model)
        expected = np.array([alone(request)[0] for request in requests])
    packed = np.array([score.log_likelihood for score in scorer(requests)])
    unpacked = Alone(half)
    single = np.array([unpacked(request)[0] for request in requests])
    # packing adds no error of its own: it is as near to float32 as bfloat16 is alone
    error = lambda scores: np.sqrt(np.mean(np.square(scores - expected)))
    assert error(packed) < 1.2 * error(single)
    assert error(packed) < 0.05 * np.std(expected)


def arrays(places):
    return (
        jnp.zeros((1, places), jnp.int32),
        jnp.zeros((1, places), jnp.int32),
        jnp.zeros(1, jnp.int32),
    )
