"""The programs as a user runs them: what they print, and one sentence for each mistake."""

import re

import pytest

from tests.conftest import program

pytestmark = pytest.mark.slow
TINY = "--config=tests/configs/tiny.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    done = program(
        "train.py",
        TINY,
        f"--workdir={workdir}",
        "--config.steps=20",
        "--config.optimizer.decay_steps=240",
    )
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def error(*arguments: str, **options) -> str:
    done = program(*arguments, **options)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.strip()


def test_training_reports_progress_and_ends_with_loss_and_entropies(run):
    _, output = run
    assert re.search(
        r"^step 20/20  loss \d\.\d{4}  lr 9\.97e-03  [\d,]+ tokens/s  0s left$", output, re.M
    ), output
    table = re.findall(
        r"^(order-0 entropy|bigram entropy|model) +(\d+\.\d{4}) +(\d+\.\d{4}) +\d+\.\d\d$",
        output,
        re.M,
    )
    assert [name for name, *_ in table] == ["order-0 entropy", "bigram entropy", "model"]
    for _, nats, bits in table:
        assert float(bits) == pytest.approx(
            float(nats) / 0.6931, rel=0.02
        )  # nearly all tokens are bytes


def test_evaluation_gives_the_loss_that_training_ended_with(run):
    workdir, output = run
    loss = lambda text: re.search(r"^model +(\S+)", text, re.M)[1]
    # the same rows, in the batches that training validates with
    again = program("eval.py", f"--ckpt={workdir}", "--batches=2", "--batch_size=4")
    assert again.returncode == 0, again.stderr
    assert loss(again.stdout) == loss(output)
    step = program("eval.py", f"--ckpt={workdir}/checkpoints/10", "--batches=2", "--batch_size=4")
    assert loss(step.stdout) != loss(output)
    other = program("eval.py", f"--ckpt={workdir}", "--data=configs", "--batches=2")
    assert loss(other.stdout) != loss(output)


def test_other_text_is_evaluated_whole_against_the_runs_own_counts(run, tmp_path):
    workdir, _ = run
    text = tmp_path / "text.txt"
    text.write_text("zzzzzzzz" * 8)  # rare in the run's training text, certain in this one's
    done = program("eval.py", f"--ckpt={workdir}", f"--data={text}")
    bits = {
        name: float(b)
        for name, b in re.findall(r"^(\S+).* +\S+ +(\S+) +\S+$", done.stdout, re.M)
        if b[0].isdigit()
    }
    assert bits["order-0"] > 8 and bits["bigram"] > 1, done.stdout


def test_data_prepared_from_another_source_is_not_trained_on(tmp_path):
    error(
        "train.py",
        TINY,
        f"--workdir={tmp_path}",
        "--config.data.source=configs",
        "--config.model.context_length=90000",
    )
    again = error("train.py", TINY, f"--workdir={tmp_path}")
    assert "was prepared with data.source='configs', now 't6jax': delete it" in again


def test_generation_continues_the_prompt_and_seeds_fix_it(run):
    workdir, _ = run
    made = [
        program(
            "generate.py", f"--ckpt={workdir}", "--prompt=def ", "--max_new_tokens=8", f"--seed={s}"
        )
        for s in (1, 1, 2)
    ]
    assert all(m.returncode == 0 and m.stdout.startswith("def ") for m in made), made[0].stderr
    assert made[0].stdout == made[1].stdout != made[2].stdout
    piped = program(
        "generate.py", f"--ckpt={workdir}", "--max_new_tokens=8", "--seed=1", input="def "
    )
    assert piped.stdout == made[0].stdout


def test_the_dry_run_shows_the_papers_xl():
    done = program("train.py", "--config=configs/xl_tpa.py", "--dry_run")
    assert done.returncode == 0, done.stderr
    for text in (
        "L 48, d_model 1600, h 78, d_h 64",
        "rank_q 6, rank_k 2, rank_v 2",
        "1,555,814,400",
        "480 x 1024 = 491,520 tokens a step",
        "100,000 steps",
        "AdamW (0.9, 0.95), weight decay 0.1, clip 1.0, warm-up 2,000 steps, cosine from 0.0001 to "
        "1e-05 at step 100,000",
        "27,264 numbers",
        "data 1, fsdp 1, tensor 1",
    ):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config=configs/xl_tpa.py"],
            "there is no data in data/fineweb-edu-100bt: put token shards there",
        ),
        (
            [TINY, "--config.stps=3"],
            "--config.stps: there is no such key (did you mean steps?); the keys of the config are "
            "seed, steps, ",
        ),
        ([TINY, "--config.steps=many"], "--config.steps=many"),
        (
            [TINY, "--config.model.attention.rank_q=0"],
            "model.attention.rank_q must be at least 1; got 0",
        ),
        (
            [TINY, "--config.data.source=nowhere"],
            "data.source='nowhere': there is no such file or folder",
        ),
        (
            [TINY, "--config.model.vocab_size=100"],
            "vocabulary of 257, larger than model.vocab_size=100",
        ),
        (
            ["--config=configs/nowhere.py"],
            "--config=configs/nowhere.py: there is no such config file",
        ),
        ([], "--config is required"),
        ([TINY, "extra"], "'extra' is not a flag"),
    ],
)
def test_what_train_cannot_do_is_named(tmp_path, flags, message):
    assert message in error("train.py", f"--workdir={tmp_path / 'run'}", *flags)


# tests/config and test_config_file.py hold the same checks without a process for each
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [TINY, "--config.model.rank=3"],
            "--config.model.rank: there is no such key; the keys of model are vocab_size, ",
        ),
        (
            [TINY, "--config.mesh.model=2"],
            "--config.mesh.model: there is no such key; the keys of mesh are data, fsdp, ",
        ),
        (
            [TINY, "--config.sharding.foo", "x"],
            "--config.sharding.foo: there is no such key; the keys of sharding are d_model, ",
        ),
        (
            [TINY, "--config.seed=1", "--config.seed.x=1"],
            "--config.seed.x: there is no such key; seed is a value, with no keys",
        ),
        ([TINY, "--config.profile=240:241"], "profile='240:241' must end at steps=240 or before"),
        (
            [TINY, "--coordinator=nohost", "--num_processes=2", "--process_id=1"],
            "--coordinator='nohost' must be HOST:PORT",
        ),
        (
            [TINY, "--config.accumulation_steps=3"],
            "batch_size=4 must be a multiple of accumulation_steps=3",
        ),
        (
            [TINY, "--config.data.path=shards"],
            "data.path='shards' and data.source='t6jax' are both given",
        ),
        ([TINY, "--config.seed=-1"], "seed must be at least 0 and at most 4294967295; got -1"),
        (
            [TINY, "--config.model.param_dtype=bfloat16"],
            "model.param_dtype must be float32 to train",
        ),
        (
            [TINY, "--config.data.source=LICENSE", "--config.model.context_length=9000"],
            "too few tokens in val_000000.bin",
        ),
        (
            ["--config=configs/nowhere.py", "--config.steps=3"],
            "--config=configs/nowhere.py: there is no such config file",
        ),
    ],
)
def test_what_else_train_cannot_do_is_named(tmp_path, flags, message):
    assert message in error("train.py", f"--workdir={tmp_path / 'run'}", *flags)


def test_a_work_directory_that_is_a_file_is_named():
    assert "--workdir=README.md is a file: name a folder" in error(
        "train.py", TINY, "--workdir=README.md"
    )


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(tmp_path):
    flags = [
        f"--workdir={tmp_path}",
        "--config.optimizer.learning_rate=1e30",
        "--config.optimizer.warmup_steps=0",
    ]
    assert "lower optimizer.learning_rate" in error("train.py", TINY, *flags)
    assert not [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]


@pytest.mark.exhaustive
def test_a_dry_run_plans_for_devices_that_are_not_there():
    plan = program(
        "train.py", "--config=configs/xl_tpa.py", "--dry_run", "--config.mesh.fsdp=8"
    ).stdout
    assert "fsdp 8" in plan
    # parameters, gradients and AdamW's two moments, in float32
    assert float(re.search(r"= ([\d.]+) GiB", plan)[1]) == pytest.approx(
        1_555_814_400 * 16 / 8 / 2**30, abs=0.01
    )
    assert re.search(
        r"^compiled +for 8 x virtual CPU device in \d+ s: [\d.]+ GiB a device", plan, re.M
    )
    # each layer in bfloat16, forward and again backward, in 20 micro-batches; the embedding in
    # float32 for its two uses
    layers, embedding = 1_555_814_400 - 50304 * 1600, 50304 * 1600
    gathered = 20 * (2 * 2 * layers + 2 * 4 * embedding) / 1e9
    found = re.search(r"all-gather over fsdp, ([\d.]+) GB", plan)
    assert float(found[1]) == pytest.approx(gathered, rel=0.01)


def test_what_eval_and_generate_cannot_do_is_named(run, tmp_path):
    workdir, _ = run
    assert "there is no such run directory or checkpoint" in error(
        "eval.py", f"--ckpt={tmp_path / 'nowhere'}"
    )
    assert "is no run directory: it has no config.json" in error(
        "generate.py", f"--ckpt={tmp_path}", "--prompt=a"
    )
    assert "there is no such checkpoint" in error("eval.py", f"--ckpt={workdir}/checkpoints/7")
    assert "--ckpt" in error("eval.py")
    assert "--data=nowhere: there is no such file or folder" in error(
        "eval.py", f"--ckpt={workdir}", "--data=nowhere"
    )
    long = error("generate.py", f"--ckpt={workdir}", "--prompt=" + "a" * 20)
    assert "the prompt has 21 tokens, which leaves no room in the model's context_length=16" in long
