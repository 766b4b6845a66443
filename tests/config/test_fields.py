"""Every key of a config is checked: its type and limits, by one sentence that names it."""

import dataclasses
import json
import math

import pytest

from t6jax import InputError
from t6jax.attention import MECHANISMS
from t6jax.config import MixtureEntry, ModelConfig, RunConfig, ShardingConfig, differences
from t6jax.config.data import VOCABULARIES
from t6jax.data.tokenizers import ByteTokenizer
from t6jax.fields import Key, OneOf, Section, keys_of
from t6jax.parallel.mesh import MESH_AXES
from tests.attention.cases import CASES
from tests.conftest import TINY

MODEL = {k: v for k, v in TINY.items() if k != "attention"}


def all_keys(section: type = RunConfig, prefix: str = "") -> dict[str, Key]:
    """Every key of a run's config, but for those of the mechanism."""
    found = {}
    for name, key in keys_of(section).items():
        if isinstance(key.type, type) and issubclass(key.type, Section):
            found |= all_keys(key.type, f"{prefix}{name}.")
        else:
            found[prefix + name] = key
    return found


def wrong_values(key: Key) -> list:
    """Values that a key must refuse, by its type and limits."""
    wrong = {
        int: [True, 1.5, "3", None, math.nan],
        float: [True, "0.1", None, math.nan, math.inf, -math.inf],
        bool: [0, 1, "true", None],
        str: [0, None, True],
    }[key.type]
    for limit in key.limits:
        if isinstance(limit, OneOf):
            wrong = [*wrong, "", "other"]
            continue
        step = 1 if key.type is int else 0.25
        wrong = [*wrong, *(x - step for x in [limit.low] if x is not None)]
        wrong = [*wrong, *(x + step for x in [limit.high] if x is not None)]
        wrong = [*wrong, *(x for x in (limit.above, limit.below) if x is not None)]
    return wrong


KEYS = {path: key for path, key in all_keys().items() if key.type in (int, float, bool, str)}
WRONG = [(path, value) for path, key in KEYS.items() for value in wrong_values(key)]


def with_value(path: str, value: object) -> dict:
    values: dict = {"model": dict(TINY)}
    *sections, name = path.split(".")
    section = values
    for part in sections:
        section = section.setdefault(part, {})
    section[name] = value
    return values


def test_there_are_keys_to_check():
    assert len(KEYS) > 50 and len(WRONG) > 250


def test_every_key_refuses_what_it_cannot_be():
    for path, value in WRONG:
        with pytest.raises(InputError) as raised:
            RunConfig.from_dict(with_value(path, value))
        sentence = str(raised.value)
        section = path.split(".")[0]
        assert path in sentence or (section == "mesh" and "mesh sizes" in sentence), (path, value)
        assert repr(value) in sentence or f"={value}" in sentence, (path, value, sentence)


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_key_of_a_mechanism_refuses_what_it_cannot_be(name):
    cls = MECHANISMS[name]
    base = dataclasses.asdict(CASES[name])
    for key in keys_of(cls).values():
        for value in wrong_values(key):
            attention = base | {"name": name, key.name: value}
            with pytest.raises(InputError, match=rf"model\.attention\.{key.name}"):
                RunConfig.from_dict({"model": MODEL | {"attention": attention}})


def test_every_key_says_what_it_means():
    for section in (RunConfig, MixtureEntry, *MECHANISMS.values()):
        for key in (all_keys(section) if section is RunConfig else keys_of(section)).values():
            assert key.doc.endswith(".") or key.doc.endswith(")"), (section, key.name)


def test_a_config_goes_through_json_unchanged():
    config = RunConfig.from_dict(
        {"model": TINY, "data": {"path": "", "mixture": {"a": {"path": "x", "weight": 3}}}}
    )
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.data.mixture["a"].weight == 3.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"stps": 3},
            r"^stps is unknown \(did you mean steps\?\); the keys of the config are seed,",
        ),
        ({"mesh": {"model": 2}}, "^mesh.model is unknown; the keys of mesh are data, fsdp, "),
        ({"mesh": 8}, "^mesh must be a section with the keys data, fsdp, .*; got 8"),
        ({"optimizer": {"min_learning_rate": 1}}, r"min_learning_rate=1 must be at most optimizer"),
        (
            {"steps": 60},
            r"^optimizer.warmup_steps=2000 must be below optimizer.decay_steps=60 \(which is steps"
            r"\): lower it, for instance --config.optimizer.warmup_steps=6$",
        ),
        (
            {"optimizer": {"decay_steps": 2000}},
            r"^optimizer.warmup_steps=2000 must be below optimizer.decay_steps=2000: lower it",
        ),
        ({"profile": "4:3"}, "must be the first and the last step to trace, as 20:24"),
        ({"profile": "0:3"}, "steps count from 1"),
        ({"profile": "3-4"}, "must be the first and the last step to trace"),
        ({"profile": "9", "steps": 8, "optimizer": {"warmup_steps": 0}}, "must end at steps=8"),
        ({"data": {"path": "a", "source": "b"}}, "are both given: take the shards of the one"),
        ({"data": {"tokenizer": "gpt3"}}, "data.tokenizer must be one of bytes, gpt2, or the path"),
        ({"data": {"mixture": ["a"]}}, r"data.mixture must be a dict of names"),
        ({"data": {"path": "", "mixture": None}}, r"data.mixture must be a dict of names"),
        ({"data": {"path": "", "mixture": {3: {"path": "x"}}}}, r"data.mixture must be .*; got 3"),
        ({"optimizer": {"clip_norm": -1}}, "optimizer.clip_norm must be above 0; got -1.0"),
        ({"optimizer": {"clip_norm": 1e-50}}, "optimizer.clip_norm must be a finite number that f"),
        ({"optimizer": {"epsilon": 1e-50}}, "optimizer.epsilon must be a finite number that float"),
        ({"optimizer": {"beta_1": 2}}, "optimizer.beta_1 must be at least 0 and below 1; got 2.0"),
        ({"optimizer": {"epsilon": -1}}, "optimizer.epsilon must be above 0; got -1.0"),
        ({"optimizer": {"weight_decay": -5}}, "optimizer.weight_decay must be at least 0; got -5"),
        ({"seed": 2**32}, "seed must be at least 0 and at most 4294967295; got 4294967296"),
        ({"data": {"mixture": {"a": {}}}}, "data.mixture.a needs a path or a source"),
        ({"data": {"mixture": {"a": {"path": 3}}}}, "data.mixture.a.path must be a string; got 3"),
        ({"mesh": {"fsdp": -1}}, "one of them may be -1"),
        ({"sharding": {"mlp": "model"}}, "sharding.mlp must be '' or of data, fsdp, tensor, seq"),
        ({"sharding": {"mlp": "fsdp,fsdp"}}, "several with commas between; got 'fsdp,fsdp'"),
    ],
)
def test_pairs_that_do_not_fit_are_named(values, message):
    with pytest.raises(InputError, match=message):
        RunConfig.from_dict({"model": TINY} | values)


@pytest.mark.parametrize("name", ["model", "optimizer", "mesh", "checkpoint"])
def test_a_section_is_its_dataclass(name):
    sections = {"model": ModelConfig.from_dict(TINY)} | {name: {"steps": 3}}
    with pytest.raises(InputError, match=f"^{name} must be a .*Config; got"):
        RunConfig(**sections)


def test_profiled_steps():
    steps = lambda text: RunConfig.from_dict({"model": TINY, "profile": text}).profiled_steps
    assert [steps(text) for text in ("", "20:24", "7")] == [range(0), range(20, 25), range(7, 8)]


def test_names_that_other_rooms_have_too():
    assert set(MESH_AXES) == set(keys_of(RunConfig.from_dict({"model": TINY}).mesh.__class__))
    assert ByteTokenizer().vocab_size == VOCABULARIES["bytes"]


def config(**values) -> RunConfig:
    return RunConfig.from_dict({"model": TINY} | values)


def test_differences_name_what_changes_the_losses_to_come():
    old = config().to_dict()
    assert differences(old, config(steps=99_000, optimizer={"decay_steps": 100_000})) == {}
    assert differences(old, config(steps=99_000)) == {"optimizer.decay_steps": (100_000, 99_000)}
    changed = differences(old, config(seed=3, log={"every_steps": 3}, mesh={"fsdp": 2}))
    assert changed == {"seed": (0, 3)}


def test_a_key_that_came_later_had_its_default():
    old = config().to_dict()
    del old["optimizer"]["clip_norm"], old["data"]["mixture"], old["model"]["attention"]["init"]
    assert differences(old, config()) == {}
    assert differences(old, config(optimizer={"clip_norm": 2})) == {
        "optimizer.clip_norm": (1.0, 2.0)
    }
    mixed = config(data={"path": "", "mixture": {"a": {"path": "x"}}})
    assert differences(old, mixed)["data.mixture.a.path"] == ("", "x")


# What may change when a run resumes: everything else is another run. Stated here again, so that a
# key that is added to the one list is thought about twice.
MAY_CHANGE = {
    *("steps", "accumulation_steps", "stop_after_not_finite", "profile"),
    *("log.every_steps", "log.tensorboard", "checkpoint.every_steps", "checkpoint.keep"),
    *("validation.every_steps", "validation.batches", "validation.batch_size"),
    *("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence"),
    *(f"sharding.{name}" for name in keys_of(ShardingConfig)),
    *("model.remat", "data.num_workers"),
}


@pytest.mark.parametrize("path", KEYS)
def test_a_key_that_decides_the_losses_may_not_change_on_resume(path):
    new = RunConfig.from_dict({"model": dict(TINY), "optimizer": {"decay_steps": 99_999}})
    old = json.loads(json.dumps(new.to_dict()))
    *sections, name = path.split(".")
    section = old
    for part in sections:
        section = section[part]
    section[name] = "another" if isinstance(section[name], str) else section[name] + 1
    assert set(differences(old, new)) == (set() if path in MAY_CHANGE else {path})
    assert set(KEYS) >= MAY_CHANGE
