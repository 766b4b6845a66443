"""What a run reports."""

import json
import struct

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


GOOD = b'{"step": 1}\n'


@pytest.mark.parametrize(
    "broken",
    [
        b"[1]",
        b"5",
        b'{"a": 1}',
        b'{"step": "1"}',
        b'{"step": true}',
        b"\xff\xfe",
        b"\0" * 50,
        b"",
        b"[" * 100_000,
        b'{"step": 1',
    ],
)
def test_a_line_that_nobody_logged_is_moved_aside_with_a_warning(tmp_path, broken):
    path = tmp_path / METRICS
    path.write_bytes(GOOD + broken + b"\n" + GOOD)
    with (
        pytest.warns(UserWarning, match=rf"1 line.s. of {path} are no JSON objects with a step"),
        MetricsLog(tmp_path, 1, tensorboard=False) as log,
    ):
        log.write(2, {"x": 1.0})
    assert path.read_bytes() == GOOD * 2 + b'{"step": 2, "x": 1.0}\n'
    assert (tmp_path / f"{METRICS}.unreadable").read_bytes() == broken + b"\n"


def test_a_whole_last_line_without_its_end_is_kept(tmp_path, recwarn):
    path = tmp_path / METRICS
    path.write_bytes(GOOD + GOOD.rstrip())
    with MetricsLog(tmp_path, 1, tensorboard=False):
        pass
    assert path.read_bytes() == GOOD * 2 and not recwarn.list


def events(workdir) -> list[tuple]:
    """(step, value) of all events, as they were written; ("restart", step) of a restart."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack("<Q", content[at : at + 8])
            event = event_pb2.Event()
            event.ParseFromString(content[at + 12 : at + 12 + size])
            found += [(event.step, value.simple_value) for value in event.summary.value]
            if event.HasField("session_log"):
                assert event.session_log.status == event_pb2.SessionLog.START
                found.append(("restart", event.step))
            at += 16 + size
    return found


def test_a_run_that_begins_anew_or_resumes_has_tensorboard_drop_the_later_steps(tmp_path):
    for start, steps in ((0, (1, 2)), (0, (1, 2, 3)), (2, (3,))):
        with MetricsLog(tmp_path, start, tensorboard=True) as log:
            for step in steps:
                log.write(step, {"loss": 1.0})
    assert events(tmp_path) == [
        *((1, 1.0), (2, 1.0)),
        *(("restart", 1), (1, 1.0), (2, 1.0), (3, 1.0)),
        *(("restart", 3), (3, 1.0)),
    ]


def test_what_was_logged_before_a_checkpoint_is_in_the_file(tmp_path):
    log = MetricsLog(tmp_path, 0, tensorboard=True)
    log.write(1, {"loss": 1.0})
    assert events(tmp_path) == []
    log.flush()
    assert events(tmp_path) == [(1, 1.0)]


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
