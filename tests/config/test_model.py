"""ModelConfig: to and from dicts, and one sentence for each wrong key."""

import json

import pytest
from flax import nnx

from t6jax import T6, InputError, ModelConfig
from t6jax.attention import TPAConfig
from tests.conftest import TINY


def test_from_dict_and_to_dict_are_inverse_and_fit_for_json(tiny_model_config):
    values = json.loads(json.dumps(tiny_model_config.to_dict()))
    assert ModelConfig.from_dict(values) == tiny_model_config


def test_the_mlp_is_as_wide_as_published_unless_set():
    assert ModelConfig.from_dict(TINY | {"d_model": 1600}).swiglu_width == 4266
    assert ModelConfig.from_dict(TINY | {"mlp_width": 30}).swiglu_width == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, "model.depth is unknown; the keys of model are vocab_size, "),
        ({"num_layers": "3"}, "model.num_layers must be an integer; got '3'"),
        ({"num_layers": True}, "model.num_layers must be an integer; got True"),
        ({"num_layers": 0}, "model.num_layers must be at least 1"),
        ({"dtype": "float8"}, "model.dtype must be one of float32, "),
        ({"remat": "some"}, "model.remat must be one of none, dots, full"),
        ({"attention": {"name": "linear"}}, "model.attention.name must be one of tpa"),
        ({"attention": "tpa"}, "model.attention must be a mechanism's config or, .* got 'tpa'"),
        ({"attention": [1]}, "model.attention must be a mechanism's config"),
        ({"attention": {"name": ["tpa"]}}, r"model.attention.name must be a string; got \['tpa'\]"),
        (
            {"attention": {"name": "x", "module": 3}},
            "model.attention.module must be a string; got 3",
        ),
        ({"attention": {"name": "x", "module": "."}}, "module='.' must be a module's whole name"),
        ({"rope_base": float("inf")}, "model.rope_base must be a finite number"),
        ({"rope_base": 10**400}, "model.rope_base must be a finite number that float32 holds"),
        ({"rope_base": 1e39}, "model.rope_base must be a finite number that float32 holds"),
        ({"rope_base": 1e-39}, "model.rope_base must be a finite number that float32 holds"),
        ({"attention": TINY["attention"] | {"rank": 3}}, "model.attention.rank is unknown"),
        ({"attention": {"name": "tpa", "num_heads": 3}}, "model.attention lacks head_dim"),
    ],
)
def test_a_wrong_key_is_named(change, message):
    with pytest.raises(InputError, match=message):
        ModelConfig.from_dict(TINY | change)


def test_a_missing_key_is_named():
    with pytest.raises(InputError, match="model lacks vocab_size"):
        ModelConfig.from_dict({k: v for k, v in TINY.items() if k != "vocab_size"})


@pytest.mark.parametrize("attention", [None, TINY["attention"], "tpa", TPAConfig])
def test_an_attention_that_is_no_mechanisms_config_is_refused(attention):
    with pytest.raises(InputError, match="model.attention must be a mechanism's config"):
        ModelConfig(**(TINY | {"attention": attention}))


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("values", [None, [], "x", 3])
def test_what_is_no_dict_is_refused(values):
    with pytest.raises(InputError, match="must be a section with the keys"):
        ModelConfig.from_dict(values)
    with pytest.raises(InputError, match="T6 takes a ModelConfig"):
        T6(values, rngs=nnx.Rngs(0))
