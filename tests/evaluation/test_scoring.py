"""A score is that of a float32 forward pass over the request alone, whatever it is batched with."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from t6jax.evaluation.packing import Request
from t6jax.evaluation.scoring import Scorer
from tests.conftest import ROOT, UNOPTIMIZED
from tests.evaluation.models import ATTENTION, Alone, config, random_model

TOLERANCE = 1e-4  # nats, what is promised


def requests_of_every_kind(window: int = 32) -> list[Request]:
    """All lengths to beyond the window, shared contexts, one-token continuations, and many of one
    context.
    """
    random = np.random.default_rng(0)
    draw = lambda n: random.integers(0, 61, n).tolist()
    requests = [
        Request(draw(length), draw(random.integers(1, 9))) for length in range(1, window + 9)
    ]
    for length in (1, 5, 30, 32, 33, 40):
        context = draw(length)
        requests += [Request(context, draw(n)) for n in (1, 1, 2, 7, 20, window)]
    context = draw(6)
    return requests + [Request(context, [token]) for token in range(61)]


def check(scores, requests, alone):
    for score, request in zip(scores, requests, strict=True):
        log_likelihood, greedy = alone(request)
        assert abs(score.log_likelihood - log_likelihood) < TOLERANCE
        assert score.greedy == greedy


@pytest.mark.parametrize("mechanism", ATTENTION)
def test_scores_are_those_of_each_request_alone(mechanism):
    model = random_model(config(mechanism))
    requests = requests_of_every_kind()
    scores = Scorer(model, batch_tokens=512)(requests)
    check(scores, requests, Alone(model))
    assert sum(score.greedy for score in scores) > 0  # the likeliest of the 61 single tokens
    assert np.std([score.log_likelihood for score in scores[-61:]]) > 0.1


def test_scores_do_not_depend_on_order_batch_or_window():
    model = random_model(config("tpa"), seed=1)
    requests = requests_of_every_kind()
    order = np.random.default_rng(1).permutation(len(requests))
    shuffled = Scorer(model, batch_tokens=64)([requests[i] for i in order])
    check([shuffled[i] for i in np.argsort(order)], requests, Alone(model))
    short = [r for r in requests if len(r.continuation) <= 10]
    check(Scorer(model, max_length=10, batch_tokens=512)(short), short, Alone(model, max_length=10))


def test_single_requests_and_none():
    model = random_model(config())
    scorer = Scorer(model, batch_tokens=256)
    assert scorer([]) == []
    check(scorer([Request([3], [5])]), [Request([3], [5])], Alone(model))


def test_logits_come_in_chunks(monkeypatch):
    monkeypatch.setattr("t6jax.evaluation.scoring.LOGITS_CHUNK", 50)
    model = random_model(config(), seed=2)
    requests = requests_of_every_kind()
    scorer = Scorer(model, batch_tokens=512)
    check(scorer(requests), requests, Alone(model))
    # no array of all of a batch's logits: [512, 61]
    shapes = str(
        jax.make_jaxpr(scorer._program)(
            scorer.params, *([np.zeros((8, 64), np.int32)] * 4), *scored_inputs(512)
        )
    )
    assert "f32[50,61]" in shapes and "f32[512,61]" not in shapes and "f32[8,64,61]" not in shapes


def scored_inputs(size: int):
    return np.zeros((1, size), np.int32), np.zeros((1, size), np.int32), np.zeros(1, np.int32)


def test_an_evaluation_compiles_a_handful_of_programs():
    scorer = Scorer(random_model(config()), batch_tokens=512)
    scorer(requests_of_every_kind())
    assert scorer.compiled_programs == 1


@pytest.mark.slow
def test_batches_are_split_over_all_devices():
    code = (
        "import jax; from tests.evaluation.test_scoring import *; assert jax.device_count() == 2\n"
        "model = random_model(config('mha')); requests = requests_of_every_kind(); scorer = "
        "Scorer(model, batch_tokens=256)\n"
        "check(scorer(requests), requests, Alone(model))\n"
        "text = scorer._program.lower(scorer.params, *([np.zeros((8, 64), np.int32)] * 4),"
        " *([np.zeros((2, 256), np.int32)] * 2), np.zeros(2, np.int32)).compile().as_text()\n"
        "assert 's32[4,64]' in text and 'all-' not in text  # four rows a device, and nothing "
        "sent\n"
        "from tests.evaluation.test_harness import *\n"
        "check_generations(T6LM.from_model(model := random_model(config(vocab_size=257, "
        "context_length=64)), ByteTokenizer()), model)\n"
    )
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        UNOPTIMIZED: "1",
        "PYTHONPATH": ".",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
