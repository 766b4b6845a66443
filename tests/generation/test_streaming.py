"""Generation: greedy is recomputing everything, decoding is compiled once, sampling draws from what
it may.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t6jax import T6, InputError, ModelConfig, generate
from t6jax.generation import Sampling, stream
from tests.conftest import TINY
from tests.test_model import lively


@pytest.fixture(scope="module")
def model() -> T6:
    return lively(T6(ModelConfig.from_dict(TINY), rngs=nnx.Rngs(0)))


PROMPTS = [[5], [1, 2, 3, 4, 5, 6, 7], [60, 0, 13]]


def test_greedy_is_recomputing_the_full_forward_at_every_token(model):
    made = generate(model, PROMPTS, 20)
    forward = jax.jit(lambda t: model(t))
    for prompt, new in zip(PROMPTS, made, strict=True):
        row = list(prompt)
        for token in new:
            padded = jnp.asarray([row + [0] * (32 - len(row))])  # what follows is not seen
            assert int(forward(padded)[0, len(row) - 1].argmax()) == token
            row.append(token)
        assert len(new) == 20


def test_nothing_is_compiled_again_whatever_the_lengths_and_temperatures(model, caplog):
    generate(model, PROMPTS, 3, temperature=1.0, top_p=0.9)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for prompts, tokens, temperature in (
            ([[1], [2, 3], [4]], 25, 0.7),
            ([[7] * 14, [8], [9] * 3], 11, 0.1),
        ):
            generate(model, prompts, tokens, temperature=temperature, top_p=temperature)
    assert not [record.message for record in caplog.records if "Compiling" in record.message]
    generate(model, PROMPTS, 3, max_length=30)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        generate(model, PROMPTS, 3, max_length=29)
    assert [record.message for record in caplog.records if "Compiling" in record.message], (
        "what is looked for is there"
    )


def test_streaming_yields_what_generate_returns(model):
    pieces = list(stream(model, PROMPTS, 20, temperature=1.0, seed=3))
    assert len(pieces) > 2
    joined = [[token for piece in pieces for token in piece[i]] for i in range(3)]
    assert joined == generate(model, PROMPTS, 20, temperature=1.0, seed=3)


def test_a_sequence_ends_before_its_first_stop_token_and_the_others_go_on(model):
    free = generate(model, PROMPTS, 20, temperature=1.0, seed=1)
    stop = free[0][4]
    stopped = generate(model, PROMPTS, 20, temperature=1.0, seed=1, stop_tokens=[stop])
    for row, want in zip(stopped, free, strict=True):
        assert row == (want[: want.index(stop)] if stop in want else want)


def test_equal_seeds_give_equal_tokens_and_others_do_not(model):
    draw = lambda seed: generate(model, PROMPTS, 10, temperature=1.0, seed=seed)
    assert draw(1) == draw(1) != draw(2)


def test_temperature_and_top_p_reach_every_token(model):
    """As low as they go, they leave the likeliest token alone."""
    greedy = generate(model, PROMPTS, 20)
    assert generate(model, PROMPTS, 20, temperature=1.0) != greedy
    assert generate(model, PROMPTS, 20, temperature=1.0, top_p=0.5) != greedy
    assert generate(model, PROMPTS, 20, temperature=1e-6) == greedy
    assert generate(model, PROMPTS, 20, temperature=1.0, top_p=1e-6) == greedy
    # the first token is drawn by another program than the others
    first = [row[:1] for row in greedy]
    draw = lambda **options: [generate(model, PROMPTS, 1, seed=n, **options) for n in range(3)]
    assert draw(temperature=1e-6) == draw(temperature=1.0, top_p=1e-6) == [first] * 3
    assert draw(temperature=1.0, top_p=0.5) != [first] * 3


def test_every_token_is_drawn_anew_and_below_the_vocabulary_size(model):
    """At a temperature where all tokens are alike, the draws are all that there is."""
    for row in generate(model, PROMPTS, 24, temperature=1e6, seed=5):
        assert len(set(row)) > 8
        assert len(set(zip(row, row[8:], strict=False))) > 8  # of one launch and the next
    below = generate(model, PROMPTS, 24, temperature=1e6, seed=5, vocab_size=2)
    assert all(set(row) == {0, 1} for row in below)
    assert all(set(row) <= {0, 1, 2} for row in generate(model, PROMPTS, 9, vocab_size=3))


def frequencies(sampling: Sampling, logits: list[float], draws: int = 4000) -> np.ndarray:
    rows = jnp.broadcast_to(jnp.asarray(logits), (draws, len(logits)))
    return np.bincount(sampling.draw(rows, jax.random.key(0)), minlength=len(logits)) / draws


@pytest.mark.parametrize(
    ("sampling", "probabilities"),
    [
        (Sampling(0.0), [0, 1, 0, 0]),
        (Sampling(1.0), [0.1, 0.6, 0.2, 0.1]),
        (Sampling(0.5), [0.01 / 0.42, 0.36 / 0.42, 0.04 / 0.42, 0.01 / 0.42]),
        (Sampling(1.0, top_k=2), [0, 0.75, 0.25, 0]),
        (Sampling(1.0, top_p=0.5), [0, 1, 0, 0]),
        (Sampling(1.0, top_p=0.7), [0, 0.75, 0.25, 0]),
        (Sampling(1.0, vocab_size=1), [1, 0, 0, 0]),
        # the temperature comes first: of probabilities that it has sharpened, one reaches 0.7
        (Sampling(0.5, top_p=0.7), [0, 1, 0, 0]),
        (Sampling(2.0, top_p=0.6), [0, 0.634, 0.366, 0]),
        (Sampling(1.0, top_k=3, top_p=0.7), [0, 0.75, 0.25, 0]),
        (Sampling(1.0, top_k=1, vocab_size=3), [0, 1, 0, 0]),
        # as cold and as hot as float32 has it, and still within the vocabulary
        (Sampling(1e-38, vocab_size=3), [0, 1, 0, 0]),
        (Sampling(1e-45), [0, 1, 0, 0]),
        (Sampling(1e38, vocab_size=2), [0.5, 0.5, 0, 0]),
    ],
)
def test_draws_follow_the_distribution_asked_for(sampling, probabilities):
    got = frequencies(sampling, np.log([0.1, 0.6, 0.2, 0.1]).tolist())
    # five standard deviations of a frequency over 4000 draws
    bound = 5 * np.sqrt(np.array(probabilities) * (1 - np.array(probabilities)) / 4000)
    assert np.all(np.abs(got - probabilities) <= bound)


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-45])
def test_logits_of_any_size_stay_apart_however_cold(temperature):
    """Divided by the temperature alone, more than one of them would be infinite."""
    np.testing.assert_array_equal(
        frequencies(Sampling(temperature), [40.0, 90.0, -90.0, 60.0], 50), [0, 1, 0, 0]
    )


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "prompts is empty"),
        ([[1], []], {}, r"prompts\[1\] has no token"),
        ([[1, 61]], {}, r"prompts\[0\] has token 61, outside the model's vocabulary of 61"),
        ([[1] * 30], {}, r"prompts\[0\] of 30 tokens and max_new_tokens=5 exceed the 32"),
        ([[1]], {"temperature": -1.0}, "temperature"),
        ([[1]], {"top_p": 0.0}, "top_p"),
        ([[1]], {"top_k": -1}, "top_k"),
    ],
)
def test_what_cannot_be_generated_is_named(model, prompts, options, message):
    with pytest.raises(InputError, match=message):
        generate(model, prompts, 5, **options)


def test_more_room_than_the_context_length_on_request_with_a_warning(model):
    with pytest.warns(UserWarning, match="max_length=64 exceeds the model's context_length=32"):
        assert len(generate(model, [[1] * 30], 5, max_length=64)[0]) == 5


class Letters:
    """A tokenizer of lower-case letters."""

    name, vocab_size, document_start, hash = "letters", 27, 26, ""

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8) - ord("a")

    def decode(self, ids) -> bytes:
        return bytes(ord("a") + i for i in ids if i < 26)

    def save(self, folder) -> None:
        pass


def test_strings_are_continued_by_strings(model):
    tokenizer = Letters()
    texts = generate(model, ["abc", "z"], 6, tokenizer=tokenizer, temperature=1.0, seed=2)
    ids = generate(
        model, [[26, 0, 1, 2], [26, 25]], 6, tokenizer=tokenizer, temperature=1.0, seed=2
    )
    assert texts == [tokenizer.decode(row).decode() for row in ids]
    assert all(token < 26 for row in ids for token in row), "the start of a document ends a text"
    with pytest.raises(InputError, match="strings, which need a tokenizer"):
        generate(model, ["abc"], 6)
