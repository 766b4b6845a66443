"""Bits a byte of a whole text: every token once, from as much before it as the window holds."""

from hypothesis import given
from hypothesis import strategies as st

from t6jax.evaluation.bits_per_byte import sliding_windows, total_nats
from t6jax.evaluation.scoring import Scorer
from tests.evaluation.models import Alone, config, random_model


@given(st.integers(0, 70), st.integers(1, 16), st.data())
def test_windows_predict_every_token_once_from_what_precedes_it(count, window, data):
    stride = data.draw(st.integers(1, window))
    tokens = list(range(1, count + 1))
    predicted = []
    for request in sliding_windows(tokens, 0, window, stride):
        whole = [*request.context, *request.continuation]
        assert len(whole) <= window + 1  # the last is no input
        assert whole == list(range(whole[0], whole[-1] + 1))
        if predicted:
            assert whole[0] == 0 or len(request.context) > window - stride
        predicted += request.continuation
    assert predicted == tokens


def test_nats_are_those_of_the_windows_alone():
    model = random_model(config())
    tokens = [i * 7 % 61 for i in range(150)]
    windows = list(sliding_windows(tokens, 0, 32, 8))
    alone = Alone(model)
    expected = -sum(alone(window)[0] for window in windows)
    assert abs(total_nats(Scorer(model, batch_tokens=256), windows, 150) - expected) < 1e-4 * len(
        windows
    )
