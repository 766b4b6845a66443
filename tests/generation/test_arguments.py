"""generate, stream and Sampling take what they say, and name what they do not."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t6jax import T6, InputError, ModelConfig, Sampling, generate, stream
from t6jax.data.tokenizers import ByteTokenizer
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("unchecked_annotations")


@pytest.fixture(scope="module")
def model() -> T6:
    return T6(ModelConfig.from_dict(TINY), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": math.nan}, "temperature must be a finite number, at least 0; got nan"),
        ({"temperature": math.inf}, "temperature must be a finite number, at least 0; got inf"),
        ({"temperature": "x"}, "temperature must be .*; got 'x'"),
        ({"temperature": None}, "temperature must be .*; got None"),
        ({"temperature": 10**400}, "temperature must be"),
        ({"top_k": 1.5}, "top_k must be an integer, at least 0; got 1.5"),
        ({"top_k": True}, "top_k must be an integer, at least 0; got True"),
        ({"top_p": math.nan}, "top_p must be a finite number, at most 1 and above 0"),
        ({"top_p": [1]}, "top_p must be"),
        ({"vocab_size": -1}, "vocab_size must be an integer, at least 0; got -1"),
        ({"vocab_size": 1.5}, "vocab_size must be an integer"),
    ],
)
def test_values_of_sampling(model, values, message):
    message = message.replace("at most 1 and above 0", ".*")
    with pytest.raises(InputError, match=message):
        Sampling(**values)
    with pytest.raises(InputError, match=message):
        generate(model, [[1]], 3, **values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": None}, "prompts must be a list of strings or of token ids; got None"),
        ({"prompts": 5}, "prompts must be a list of strings or of token ids; got 5"),
        # each letter would be a prompt
        ({"prompts": "abc"}, r"prompts must be a list .*; got 'abc': give a list of one"),
        ({"prompts": ["a", [1]]}, "prompts must be all strings or all token ids; got both"),
        ({"prompts": [[1], "a"]}, "prompts must be all strings or all token ids; got both"),
        ({"prompts": [b"abc"]}, r"prompts\[0\] must be a list of token ids, integers; got b'abc'"),
        ({"prompts": [1, 2]}, r"prompts\[0\] must be a list of token ids, integers; got 1"),
        ({"prompts": [[1], [1.0]]}, r"prompts\[1\] must be a list of token ids, integers"),
        (
            {"prompts": np.ones((1, 2))},
            r"prompts\[0\] must be a list of token ids, .*; got float64",
        ),
        (
            {"prompts": [[True]]},
            r"prompts\[0\] must be a list of token ids, integers; got \[True\]",
        ),
        ({"prompts": [[[1]]]}, r"prompts\[0\] must be a list of token ids, integers"),
        ({"prompts": [[2**70]]}, r"prompts\[0\] has token 1180591620717411303424, outside"),
        ({"prompts": [[-1]]}, r"prompts\[0\] has token -1, outside"),
        ({"max_new_tokens": "3"}, "max_new_tokens must be an integer, at least 1; got '3'"),
        ({"max_new_tokens": 2.0}, "max_new_tokens must be an integer, at least 1; got 2.0"),
        ({"max_new_tokens": None}, "max_new_tokens must be"),
        ({"max_length": "x"}, "max_length must be an integer, at least 1; got 'x'"),
        ({"max_length": 0}, "max_length must be an integer, at least 1; got 0"),
        ({"seed": 1.5}, "seed must be an integer, at least 0 and at most 4294967295; got 1.5"),
        ({"seed": 2**32}, "seed must be"),  # which would be seed 0
        ({"seed": 2**63}, "seed must be"),
        ({"seed": -1}, "seed must be"),
        ({"stop_tokens": "ab"}, "stop_tokens must be token ids; got 'ab'"),
        ({"stop_tokens": 3}, "stop_tokens must be token ids; got 3"),
        ({"stop_tokens": [1.5]}, "stop_tokens must be an integer"),
        ({"tokenizer": "gpt2"}, "tokenizer must be a tokenizer, as t6jax.load_tokenizer"),
        ({"model": None}, "model must be a T6, as t6jax.load gives it; got None"),
    ],
)
def test_other_arguments(model, change, message):
    arguments = {"model": model, "prompts": [[1]], "max_new_tokens": 3} | change
    with pytest.raises(InputError, match=message):
        generate(**arguments)
    if not {"tokenizer", "prompts"} & set(change):
        with pytest.raises(InputError, match=message):
            stream(**arguments)  # at once: no piece is asked for


def test_ids_may_be_arrays_and_iterators_and_stop_tokens_any_integers(model):
    want = generate(model, [[1, 2]], 3)
    for prompts in (np.array([[1, 2]]), jnp.array([[1, 2]]), iter([(1, 2)]), [np.uint8([1, 2])]):
        assert generate(model, prompts, np.int64(3)) == want
    assert generate(model, [[1, 2]], 3, stop_tokens=(2**40, -1, 999)) == want


def test_a_string_is_continued_with_the_space_between(model):
    class Words(ByteTokenizer):
        """A space before each word but the first."""

        vocab_size, document_start = 61, 60

        def encode(self, text):
            return np.arange(len(text.split()))

        def decode(self, ids):
            return " ".join(f"w{i}" for i in ids if i < 60).encode()

    (made,) = generate(model, [[60, 0]], 4, tokenizer=Words())
    (text,) = generate(model, ["once"], 4, tokenizer=Words())
    assert text == "".join(f" w{i}" for i in made) and len(made) == 4
