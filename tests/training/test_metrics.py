"""What a run reports."""

import json

import pytest

from t6jax.config import ModelConfig
from t6jax.training.metrics import (
    METRICS,
    MetricsLog,
    duration,
    flops_per_token,
    progress_line,
)
from tests.conftest import TINY


def test_going_on_drops_what_was_logged_of_later_steps_and_a_broken_last_line(tmp_path):
    path = tmp_path / METRICS
    path.write_text(
        '{"step": 1, "x": 1}\n{"step": 2, "x": 2}\n{"step": 3, "x": 3}\n{"step": 4, "x"'
    )
    with MetricsLog(tmp_path, 2, tensorboard=False) as log:
        log.write(3, {"x": 30.0})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "x": 1},
        {"step": 2, "x": 2},
        {"step": 3, "x": 30.0},
    ]


def test_tensorboard_events_are_written(tmp_path):
    with MetricsLog(tmp_path, 0, tensorboard=True) as log:
        log.write(1, {"train_loss": 2.0})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train_loss" in events.read_bytes()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (187, "3m07s"), (19200, "5h20m"), (187200, "2d04h")],
)
def test_durations_for_people(seconds, text):
    assert duration(seconds) == text


def with_attention(**attention) -> ModelConfig:
    return ModelConfig.from_dict(TINY | {"attention": attention})


def test_mlas_queries_are_wider_than_its_values():
    config = with_attention(name="mla", num_heads=5, head_dim=8, kv_rank=6, q_rank=7, rope_dim=4)
    # per layer and token: Q K^T over 8 + 4 features of a head and P V over 8, for 16 seen tokens
    attention = 3 * 3 * 2 * (16 * 5 * (8 + 4) + 16 * 5 * 8)
    assert flops_per_token(config, 32) == 6 * config.parameter_count + attention


def test_mfas_heads_are_as_wide_as_its_shared_keys():
    config = with_attention(name="mfa", num_heads=5, head_dim=8)
    attention = 3 * 3 * 2 * (16 * 5 * 8) * 2
    assert flops_per_token(config, 32) == 6 * config.parameter_count + attention


def test_a_speed_that_is_not_known_is_not_shown():
    values = {"train_loss": 2.0, "learning_rate": 1e-3}
    assert progress_line(3, 10, values, None) == "step  3/10  loss 2.0000  lr 1.00e-03"
    assert progress_line(3, 10, values, 61).endswith("1m01s left")


def test_flops_are_six_a_parameter_and_causal_attention_once():
    config = ModelConfig.from_dict(TINY)
    # per layer and token: Q K^T and P V over 16 seen tokens on average, 5 heads of 8, 2 FLOP each,
    # thrice
    attention = 3 * 2 * (16 * 5 * 8) * 2 * 3
    assert flops_per_token(config, 32) == 6 * config.parameter_count + attention
