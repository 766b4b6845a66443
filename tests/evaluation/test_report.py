"""What eval.py prints of a loss, with numbers worked out by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from t6jax.evaluation.validation import Entropies, loss_sums, report, validation_loss


def cells(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return line.removeprefix(name).split()


def test_nats_bits_a_byte_and_perplexity():
    # 4 bits a token, at 2 bytes a token
    text = report(4 * math.log(2), 1234, Entropies(6 * math.log(2), 5 * math.log(2)), 2.0)
    assert text.splitlines()[0] == "evaluated 1,234 tokens"
    assert cells(text, "model") == ["2.7726", "2.0000", "16.00"]
    assert cells(text, "order-0 entropy") == ["4.1589", "3.0000", "64.00"]
    assert cells(text, "bigram entropy") == ["3.4657", "2.5000", "32.00"]


def test_what_is_not_known_is_not_shown():
    text = report(1.0, 5, Entropies(2.0, None), None)
    assert cells(text, "model") == ["1.0000", "-", "2.72"]
    assert "bigram" not in text and "order-0" in text
    assert "entropy" not in report(1.0, 5, None, None)
    assert cells(report(1e4, 5, None, None), "model")[0] == "10000.0000"  # and no overflow


def test_the_mean_is_over_tokens_of_all_batches():
    batches = [(np.full((2, 3), n), np.array([1.0, n])) for n in (0, 1)]
    sums = lambda params, windows, mask: (params * mask.sum(), mask.sum() * 2)
    loss, tokens = validation_loss(sums, 3.0, batches)
    assert (loss, tokens) == (1.5, 6)
    assert math.isnan(validation_loss(sums, 3.0, [])[0])
    weighted = lambda params, windows, mask: (np.float64(windows[0, 0]), np.float64(windows.size))
    uneven = [(np.full((1, 3), 9), np.ones(1)), (np.full((3, 3), 1), np.ones(3))]
    assert validation_loss(weighted, None, uneven)[0] == pytest.approx(10 / 12)


@pytest.mark.usefixtures("unchecked_annotations")
def test_masked_rows_count_in_neither_sum():
    class Model:
        """Every target costs its own id in nats."""

        def nats(self, tokens, targets, **_):
            return targets.astype(jnp.float32)

    windows = jnp.array([[9, 1, 2], [9, 3, 4], [9, 50, 60]])
    nats, tokens = loss_sums(Model(), windows, jnp.array([1.0, 1.0, 0.0]))
    assert (float(nats), float(tokens)) == (10.0, 4.0)
