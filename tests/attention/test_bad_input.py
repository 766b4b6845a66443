"""Wrong settings are refused at construction, in one sentence that names the key and what is
allowed.
"""

import pytest

from t6jax import InputError, ModelConfig
from t6jax.attention import MECHANISMS
from tests.attention.cases import case
from tests.conftest import TINY

# their types are wrong too, which a user is told in the same sentence
pytestmark = pytest.mark.usefixtures("unchecked_annotations")


@pytest.mark.parametrize("name", [name for name in MECHANISMS if name.startswith("tpa")])
@pytest.mark.parametrize("key", ["rank_q", "rank_k", "rank_v"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_ranks_are_integers_of_at_least_1(name, key, value):
    if name == "tpa_kvonly" and key == "rank_q":
        pytest.skip("dense queries have no rank")
    with pytest.raises(
        InputError, match=rf"^model\.attention\.{key} must be (at least 1|an integer); got {value}$"
    ):
        case(name, **{key: value})


@pytest.mark.parametrize("name", MECHANISMS)
def test_what_rope_rotates_is_even(name):
    key = MECHANISMS[name].rotated
    with pytest.raises(
        InputError,
        match=rf"^model\.attention\.{key} must be even, since RoPE rotates pairs of .*; got 3$",
    ):
        case(name, **{key: 3})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "tpa_order3",
            {"dim_b": 4},
            r"^model.attention.dim_b x dim_c must be head_dim=6; got 4 x 3 = 12$",
        ),
        ("tpa_order3", {"dim_c": 0}, r"^model.attention.dim_c must be at least 1; got 0$"),
        (
            "gqa",
            {"num_kv_heads": 4},
            r"^model.attention.num_kv_heads must divide num_heads=6: one of 1, 2, 3, 6; got 4$",
        ),
        (
            "gqa",
            {"num_kv_heads": 0},
            r"^model.attention.num_kv_heads must be at least 1; got 0$",
        ),
        ("mla", {"kv_rank": 0}, r"^model.attention.kv_rank must be at least 1; got 0$"),
        ("mla", {"q_rank": 0}, r"^model.attention.q_rank must be at least 1; got 0$"),
        ("mha", {"num_heads": 0}, r"^model.attention.num_heads must be at least 1; got 0$"),
        ("mfa", {"head_dim": 0}, r"^model.attention.head_dim must be at least 1; got 0$"),
        (
            "tpa",
            {"init": "zeros"},
            r"^model.attention.init must be one of xavier, xavier_three_axes; got 'zeros'$",
        ),
        (
            "tpa",
            {"activation_q": "relu"},
            r"^model.attention.activation_q must be one of none, sigmoid, softmax; got 'relu'$",
        ),
        (
            "tpa_kvonly",
            {"activation_v": ""},
            r"^model.attention.activation_v must be one of none, sigmoid, softmax; got ''$",
        ),
        (
            "tpa_nonctx_a",
            {"activation_k": "sigmoid"},
            r"^model.attention.activation_k must be none with tpa_nonctx_a, ",
        ),
        (
            "tpa",
            {"shared_kv_b": True},
            (
                r"^model.attention.rank_v must equal model.attention.rank_k with shared_kv_b; got "
                r"rank_k=2, rank_v=1$"
            ),
        ),
    ],
)
def test_settings_that_cannot_be_are_named(name, settings, message):
    with pytest.raises(InputError, match=message):
        case(name, **settings)


def test_an_unknown_mechanism_or_flag_is_named_with_those_there_are():
    with pytest.raises(
        InputError, match=r"^model.attention.name must be one of tpa, .*, mfa.*; got 'linear'$"
    ):
        ModelConfig.from_dict(TINY | {"attention": {"name": "linear"}})
    attention = {"name": "mha", "num_heads": 2, "head_dim": 4, "rank_k": 2}
    with pytest.raises(
        InputError,
        match=r"^model.attention.rank_k is unknown; the keys of model.attention are .*head_dim",
    ):
        ModelConfig.from_dict(TINY | {"attention": attention})


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_config_survives_its_dict(name):
    config = ModelConfig.from_dict(TINY | {"attention": {"name": name} | vars(case(name))})
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config.attention == case(name)
