"""The examples run, and show what they say."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest

from examples import decode, train_on_own_text
from t6jax.attention import MECHANISMS
from t6jax.runs import checkpoint_steps


@pytest.fixture
def add_mechanism():
    """The example, and what it registers for this test alone."""
    before = dict(MECHANISMS)
    yield importlib.import_module("examples.add_mechanism")
    MECHANISMS.clear()
    MECHANISMS.update(before)


def test_decode_equals_attention_over_the_whole():
    # sums of up to 128 float32 terms of size 1, in another order
    assert decode.main() < 128 * np.finfo(np.float32).eps


def test_the_added_mechanism_decodes_what_its_forward_pass_gives(add_mechanism):
    # two layers of float32 sums of up to 85 terms, in another order; logits are of size 1
    assert add_mechanism.main() < 256 * float(jnp.finfo(jnp.float32).eps)


def test_training_on_own_text_continues_a_prompt(texts, tmp_path):
    text = train_on_own_text.main(str(texts), tmp_path, steps=2, prompt="line ")
    assert text.startswith("line ") and checkpoint_steps(tmp_path) == [2]
