"""Configs from files and flags: training and --dry_run refuse the same ones and leave nothing."""

import pytest

from t6jax import InputError
from t6jax.attention import MECHANISMS
from t6jax.config import RunConfig
from t6jax.fields import keys_of
from t6jax.programs.config_file import check_overrides, load_config, split_overrides
from t6jax.programs.config_keys import listing
from t6jax.programs.training import train_program

CONFIG = "tests/configs/tiny.py"


def load(*flags: str, name: str = CONFIG) -> RunConfig:
    rest, overrides = split_overrides(flags)
    assert not rest
    check_overrides(overrides)
    return load_config(name, overrides)


def test_overrides_are_taken_out_of_the_arguments():
    rest, overrides = split_overrides(
        [
            *("train.py", "--config=a.py", "--config.steps=3", "--config.mesh.data", "-1"),
            *("--dry_run", "--config.log.tensorboard", "--noconfig.model.unroll", "--x"),
        ]
    )
    assert rest == ["train.py", "--config=a.py", "--dry_run", "--x"]
    assert overrides == [
        *(("steps", "3"), ("mesh.data", "-1")),
        *(("log.tensorboard", "true"), ("model.unroll", "false")),
    ]


def test_overrides_have_their_keys_types():
    config = load(
        *("--config.steps=1_000", "--config.optimizer.learning_rate=1", "--config.data.source=8"),
        *("--config.log.tensorboard", "--config.model.attention.rank_q=5", "--config.mesh.data=1"),
    )
    assert (config.steps, config.optimizer.learning_rate, config.data.source) == (1000, 1.0, "8")
    assert config.log.tensorboard is True and config.model.attention.rank_q == 5


def test_fewer_steps_end_with_the_schedule_at_its_minimum():
    config = load("--config.steps=60", name="configs/quickstart.py")
    assert config.decay_steps == 60


def test_another_mechanism_gets_its_own_keys():
    attention = load("--config.model.attention.name=mha").model.attention
    assert (attention.name, attention.num_heads, attention.head_dim) == ("mha", 3, 4)
    attention = load(
        "--config.model.attention.num_kv_heads=3", "--config.model.attention.name=gqa"
    ).model.attention
    assert (attention.name, attention.num_kv_heads) == ("gqa", 3)
    kept = load("--config.model.attention.name=tpa_kvonly").model.attention
    assert (kept.name, kept.rank_k) == ("tpa_kvonly", 2)


def test_a_source_of_a_mixture_is_set_by_its_name():
    config = load("--config.data.mixture.web.path=shards", "--config.data.mixture.web.weight=3")
    assert config.data.mixture["web"].path == "shards" and config.data.mixture["web"].weight == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = 3", "defines no get_config"),
        ("def get_config(): return 3", "must return a config; got 3"),
        ("import nowhere", "line 1: No module named 'nowhere'"),
        (
            "from configs import common\ndef get_config():\n  c = common.get_config()\n"
            "  c.stps = 3",
            "line 4: .*stps.*Did you mean .*steps",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=message):
        load(name=str(tmp_path / "mine.py"))


def test_a_file_may_take_an_argument(tmp_path):
    text = f"import runpy\ntiny = runpy.run_path({CONFIG!r})['get_config']\n"
    text += "def get_config(steps):\n  c = tiny()\n  c.steps = int(steps)\n  return c"
    (tmp_path / "mine.py").write_text(text)
    assert load(name=f"{tmp_path / 'mine.py'}:77").steps == 77


def test_help_lists_every_key_with_its_default_or_its_value():
    names = []

    def entry(name: str, text: str) -> list[str]:
        names.append(name)
        return [name, text]

    lines = list(listing(entry))
    assert {"optimizer.beta_1 (0.9)", "data.path ('data/fineweb-edu-100bt')", "steps (100000)"} <= {
        *names
    }
    for mechanism in MECHANISMS.values():
        for key in keys_of(mechanism):
            assert any(name.split()[0] == f"model.attention.{key}" for name in names), key
    assert "Of mla: d_c, the width of the latent C^KV. [at least 1]" in lines
    names.clear()
    list(listing(entry, load("--config.steps=77")))
    assert "steps (77)" in names and "model.attention.name ('tpa')" in names


# flags that are refused -> what the sentence names
REFUSED = {
    "--config.stps=3": r"--config.stps: there is no such key \(did you mean steps\?\)",
    "--config.model.rank=3": "--config.model.rank: there is no such key; the keys of model are ",
    "--config.seed.x=1": "seed is a value, with no keys below it",
    "--config.mesh=8": "--config.mesh: mesh is a section, with the keys data, fsdp",
    "--config.data.mixture=a": "--config.data.mixture: set it in a config file",
    "--config.data.mixture.a.pth=x": r"no such key \(did you mean path\?\)",
    "--config.data.mixture.a.weight=0": "data.mixture.a.* must be above 0|needs a path",
    "--config.steps=many": "--config.steps=many must be an integer",
    "--config.steps=1.5": "--config.steps=1.5 must be an integer",
    "--config.log.tensorboard=maybe": "must be True or False",
    "--config.optimizer.learning_rate=nan": "must be a finite number that float32 holds; got nan",
    "--config.optimizer.learning_rate=inf": "must be a finite number that float32 holds; got inf",
    "--config.optimizer.learning_rate=-1": "optimizer.learning_rate must be at least 0; got -1.0",
    "--config.optimizer.min_learning_rate=1": "must be at most optimizer.learning_rate",
    "--config.optimizer.beta_1=1.5": "optimizer.beta_1 must be at least 0 and below 1; got 1.5",
    "--config.optimizer.beta_2=1": "optimizer.beta_2 must be at least 0 and below 1; got 1.0",
    "--config.optimizer.epsilon=0": "optimizer.epsilon must be above 0; got 0",
    "--config.optimizer.weight_decay=-0.1": "optimizer.weight_decay must be at least 0",
    "--config.optimizer.clip_norm=0": "optimizer.clip_norm must be above 0",
    "--config.optimizer.warmup_steps=240": "must be below optimizer.decay_steps=240",
    "--config.optimizer.decay_steps=5": "warmup_steps=10 must be below optimizer.decay_steps=5",
    "--config.optimizer.decay_steps=-1": "optimizer.decay_steps must be at least 0; got -1",
    "--config.seed=-1": "seed must be at least 0 and at most 4294967295; got -1",
    "--config.seed=4294967296": "seed must be at least 0 and at most 4294967295; got 4294967296",
    "--config.steps=0": "steps must be at least 1; got 0",
    "--config.batch_size=0": "batch_size must be at least 1; got 0",
    "--config.accumulation_steps=3": "batch_size=4 must be a multiple of accumulation_steps=3",
    "--config.profile=240:241": "profile='240:241' must end at steps=240 or before",
    "--config.profile=x": "profile='x' must be the first and the last step to trace",
    "--config.checkpoint.keep=0": "checkpoint.keep must be at least 1",
    "--config.validation.batches=0": "validation.batches must be at least 1",
    "--config.log.every_steps=0": "log.every_steps must be at least 1",
    "--config.data.path=shards": "data.path='shards' and data.source='t6jax' are both given",
    "--config.data.tokenizer=gpt3": "data.tokenizer must be one of bytes, gpt2",
    "--config.data.tokenizer=gpt2": "has a vocabulary of 50257, larger than model.vocab_size=257",
    "--config.data.validation_fraction=0": "data.validation_fraction must be above 0",
    "--config.data.num_workers=-1": "data.num_workers must be at least 0",
    "--config.model.vocab_size=100": "has a vocabulary of 257, larger than model.vocab_size=100",
    "--config.model.num_layers=0": "model.num_layers must be at least 1",
    "--config.model.dtype=float8": "model.dtype must be one of float32, bfloat16, float16",
    "--config.model.remat=some": "model.remat must be one of none, dots, full",
    "--config.model.param_dtype=bfloat16": "model.param_dtype must be float32 to train",
    "--config.model.rope_base=0": "model.rope_base must be above 0",
    "--config.model.attention.name=linear": "model.attention.name must be one of tpa, ",
    "--config.model.attention.rank=2": r"attention.rank: there is no such key",
    "--config.model.attention.rank_q=0": "model.attention.rank_q must be at least 1; got 0",
    "--config.model.attention.head_dim=3": "model.attention.head_dim must be even",
    "--config.mesh.data=0": "mesh sizes must be at least 1",
    "--config.mesh.fsdp=-1": "one of them may be -1",
    "--config.mesh.sequence=-2": "mesh.sequence must be at least -1",
    "--config.sharding.mlp=model": "sharding.mlp must be '' or of data, fsdp",
}


@pytest.mark.parametrize("flag", REFUSED)
def test_training_and_dry_run_refuse_the_same_and_make_nothing(tmp_path, flag):
    sentences = []
    _, overrides = split_overrides([flag])
    for dry_run in (False, True):
        with pytest.raises(InputError, match=REFUSED[flag]) as raised:
            train_program(CONFIG, overrides, str(tmp_path / "run"), dry_run)
        sentences.append(str(raised.value))
    assert sentences[0] == sentences[1]
    assert not (tmp_path / "run").exists()
