"""eval.py --tasks and lm_eval --model t6jax as a user runs them: what they print and write."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tomllib

import pytest
from lm_eval import tasks

from t6jax.errors import InputError
from t6jax.evaluation.paper import COLUMNS
from t6jax.programs import lm_eval as command
from t6jax.programs.tasks import LoadedTasks, Options, tasks_program
from tests.conftest import ROOT, process_options, program
from tests.conftest import command as command_of
from tests.evaluation.conftest import own_cache, task_folder  # noqa: F401
from tests.evaluation.models import config, random_model, save_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    make = lambda seed: random_model(config("mha", vocab_size=257), seed)
    return [
        str(save_run(tmp_path_factory.mktemp(f"run{seed}"), make(seed), step=seed + 1))
        for seed in range(2)
    ]


def test_a_row_for_each_checkpoint_and_the_papers(
    runs,
    task_folder,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = Options(
        [f"{task_folder}/local_choice.yaml"],
        num_fewshot=0,
        include_path=str(task_folder),
        limit=6,
        use_cache=True,
        log_samples=True,
    )
    assert tasks_program(runs, "medium/tpa", options) == 0
    head, first, _, second, _, paper = capsys.readouterr().out.splitlines()
    assert head.split() == ["Method", "local_choice", "acc_norm"]
    assert first.startswith(f"{runs[0]}, step 1") and second.startswith(f"{runs[1]}, step 2")
    assert paper.split() == ["paper,", "Table", "2,", "TPA", "-"]  # the paper has no such task
    for run, line in zip(runs, (first, second), strict=True):
        folder = f"{run}/evaluation"
        (written,) = (json.loads(p.read_text()) for p in _files(folder, "table_*.json"))
        assert f"{written['columns'][0]['value']:.2f}" == line.split()[-1]
        assert written["num_fewshot"] == {"local_choice": 0} and written["limit"] == 6
        (theirs,) = _files(folder, "results_*.json")
        assert written["harness_results"] == theirs.name
        assert json.loads(theirs.read_text())["results"]["local_choice"]["sample_len"] == 6
        (samples,) = _files(folder, "samples_local_choice_*.jsonl")
        assert len(samples.read_text().splitlines()) == 6
        # what is unpickled lies in no folder that may be a stranger's
        assert not [p for p in pathlib.Path(run).rglob("*") if p.suffix == ".db"]
    assert len(_files(tmp_path / "t6jax" / "evaluation", "*.db")) == len(runs)


def _files(folder, pattern):
    return sorted(pathlib.Path(folder).glob(pattern))


def test_the_papers_tasks_are_the_harnesss():
    manager = LoadedTasks(include_path=LoadedTasks.paper_folders(), include_defaults=False)
    for column in COLUMNS:
        entry = manager.task_index[column.task]
        metrics = (entry.cfg or {}).get("metric_list") or entry.cfg["aggregate_metric_list"]
        assert column.metric in [metric["metric"] for metric in metrics]


def test_the_harnesss_own_command_line(runs, task_folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    # its index of 14,000 files, which takes a quarter of a minute, is not what is tested
    own = lambda include_path=None, metadata=None: manager(
        include_path=include_path, metadata=metadata, include_defaults=False
    )
    manager = tasks.TaskManager
    monkeypatch.setattr(tasks, "TaskManager", own)
    line = [
        "lm_eval",
        "--model",
        "t6jax",
        "--model_args",
        f"ckpt={runs[0]}",
        "--tasks",
        "local_choice",
        "--limit",
        "4",
    ]
    monkeypatch.setattr(
        sys, "argv", [*line, "--include_path", str(task_folder), "--output_path", str(tmp_path)]
    )
    assert command.main() == 0
    assert "local_choice" in capsys.readouterr().out
    (results,) = tmp_path.rglob("results_*.json")
    assert json.loads(results.read_text())["config"]["step"] == 1
    monkeypatch.setattr(
        sys, "argv", [*line, "--include_path", str(task_folder), "--apply_chat_template"]
    )
    assert command.main() == 1
    assert (
        "error: --apply_chat_template: a t6jax checkpoint has no chat template"
        in capsys.readouterr().err
    )


def test_both_of_the_harnesss_commands_are_installed_from_here():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {
        "lm_eval": "t6jax.programs.lm_eval:main",
        "lm-eval": "t6jax.programs.lm_eval:main",
    }


@pytest.mark.slow
def test_without_a_network_the_data_sets_are_named(runs, tmp_path):
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "nothing")}
    run = command_of(
        "eval.py", f"--ckpt={runs[0]}", "--tasks=paper", "--num_fewshot=2", "--paper_row=medium/tpa"
    )
    options = process_options()
    options["env"] |= offline
    done = subprocess.run(run, **options, capture_output=True, check=False)
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for name in (
        "allenai/ai2_arc",
        "aps/super_glue",
        "Rowan/hellaswag",
        "allenai/openbookqa",
        "baber/piqa",
        "cais/mmlu",
    ):
        assert name in sentence
    assert (
        f"which the harness looks for in {tmp_path / 'nothing'} (HF_HOME) and then on the Hugging "
        "Face Hub" in sentence
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            Options(["local_choice"], apply_chat_template=True),
            "--apply_chat_template: a t6jax checkpoint has no chat template",
        ),
        (
            Options(["local_choice"], include_path="nowhere"),
            "--include_path=nowhere: there is no such folder",
        ),
        (Options(["local_broken"]), "the data of local_broken cannot be read: .*nowhere.jsonl"),
        (Options(["local_broken"], limit=0), "--limit=0 must be a whole number of questions"),
        (Options(["local_broken"], limit=-1), "--limit=-1 must be"),
        (Options(["local_broken"], limit=2.5), "--limit=2.5 must be"),
        (Options(["local_broken"], limit=float("nan")), "--limit=nan must be"),
        (
            Options(["local_broken"], output_path=f"{__file__}/results"),
            "--output_path, .*/results, cannot be written to .Not a directory.: name another",
        ),
    ],
)
def test_what_cannot_be_is_named_before_the_work(runs, options, message, tmp_path):
    broken = {
        "task": "local_broken",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": "nowhere.jsonl"}},
    }
    (tmp_path / "local_broken.yaml").write_text(
        json.dumps(broken | {"validation_split": "validation", "output_type": "loglikelihood"})
    )
    options = dataclasses.replace(options, include_path=options.include_path or str(tmp_path))
    with pytest.raises(InputError, match=message):
        tasks_program(runs, None, options)


def test_more_examples_than_there_are_is_said_before_the_work(runs, task_folder):  # noqa: F811
    options = Options(["local_choice"], include_path=str(task_folder), num_fewshot=13)
    with pytest.raises(InputError, match="--num_fewshot=13: the task local_choice has 12 examples"):
        tasks_program(runs, None, options)
    tasks = LoadedTasks.find(["local_choice"], str(task_folder))
    tasks.check_examples(12)


@pytest.mark.slow
def test_bits_a_byte_of_a_text(runs, tmp_path):
    (tmp_path / "a.txt").write_text("some text, of some length. " * 9)
    (tmp_path / "b.txt").write_text("")
    done = program("eval.py", f"--ckpt={runs[0]}", f"--bpb={tmp_path}", "--stride=8")
    assert done.returncode == 0, done.stderr
    head, *_, row = done.stdout.splitlines()
    assert "243 bytes, 243 tokens; windows of 32 by 8" in head
    nats, bits = (float(x) for x in row.split()[1:3])
    assert bits == pytest.approx(nats / 0.693147, abs=2e-4)
