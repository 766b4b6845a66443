"""The pages tell the truth: their snippets run, and what they name is there."""

import importlib.util
import re
import shlex
import subprocess
import sys

import pytest

from configs import common
from docs import tables
from t6jax.config import RunConfig
from t6jax.fields import keys_of
from t6jax.programs.config_file import load_config, split_overrides
from tests.conftest import ROOT, process_options, program
from tests.docs.pages import PAGES, commands, python_blocks

COMMANDS = [(page, command) for page, text in PAGES.items() for command in commands(text)]
# what the pages name that a run, a build or a preparation makes
MADE = ("runs/", "data/", "evaluation/", "checkpoints/", "tensorboard/", "build/", "RUN/", "~/")


def flags(command: str) -> set[str]:
    """The names of the flags of a command, those of config keys left out."""
    return set(re.findall(r"--(\w+)(?![\w.])", command))


@pytest.mark.parametrize("page", ["docs/from_python.md"])
def test_snippets_run_one_after_another(page):
    names: dict = {}
    blocks = python_blocks(PAGES[page])
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert blocks


@pytest.mark.parametrize("page", PAGES)
def test_all_snippets_are_python_and_import_what_exists(page):
    for block in python_blocks(PAGES[page]):
        compile(block, page, "exec")
        for line in re.findall(r"^(?:from|import) .*$", block, re.M):
            exec(line, {})


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    old = page == "CHANGELOG.md"  # whose tables have what is gone in their first column
    text = re.sub(r"^\|[^|]*\|", "|", PAGES[page], flags=re.M) if old else PAGES[page]
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", text)
    named = [name for name in named if not name.startswith(MADE) and "SIZE_MECHANISM" not in name]
    assert not {name for name in named if not (ROOT / name).exists()}


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page):
    folder = (ROOT / page).parent
    links = re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", PAGES[page])
    wrong = [x for x in links if not x.startswith("http") and not (folder / x).exists()]
    # the project's pages lie next to the others on the site
    assert not [x for x in wrong if x not in ("changelog.md", "contributing.md")]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_what_a_command_names_exists(page, command):
    for file in re.findall(r"(?<![\w/=])((?:configs|scripts|examples)/[\w./-]+\.\w+)", command):
        assert (ROOT / file).is_file(), file
    if module := re.search(r"python -m ([\w.]+)", command):
        assert importlib.util.find_spec(module[1]), module[1]
    if target := re.match(r"make ([\w-]+)(?: |$)", command):
        assert re.search(rf"^{target[1]}:", (ROOT / "Makefile").read_text(), re.M), target[1]


@pytest.mark.parametrize(
    ("page", "command"), [c for c in COMMANDS if re.search(r"--config=\S*\w+\.py", c[1])]
)
def test_config_keys_of_a_command_exist(page, command):
    file = re.search(r"--config=(\S+)", command)[1]
    _, overrides = split_overrides(shlex.split(command))
    load_config(str(ROOT / file), overrides)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train.py", "eval.py", "generate.py"])
def test_flags_of_the_programs_exist(name):
    help_text = program(name, "--help").stdout
    used = {f for _, c in COMMANDS if c.startswith(f"python {name} ") for f in flags(c)}
    used -= {"config"} if name == "train.py" else set()
    missing = {flag for flag in used if not re.search(rf"--(\[no\])?{flag}\b", help_text)}
    assert used and not missing


@pytest.mark.parametrize("name", ["prepare", "train_tokenizer", "verify"])
def test_flags_of_the_data_programs_exist(name):
    run = [sys.executable, "-m", f"t6jax.data.{name}", "--help"]
    help_text = subprocess.run(run, **process_options(), capture_output=True, check=True).stdout
    shown = [c for _, c in COMMANDS if c.startswith(f"python -m t6jax.data.{name} ")]
    assert shown and all(re.search(rf"--{f}\b", help_text) for c in shown for f in flags(c))


def test_the_mixture_shown_is_one():
    config = common.get_config()
    (line,) = re.findall(r"^    (config.data.mixture = .*)$", PAGES["docs/data.md"], re.M)
    exec(line, {"config": config})
    assert RunConfig.from_dict(config.to_dict()).data.mixture


def flat(config: dict, prefix: str = "") -> dict:
    """The keys of a config, their names joined by dots, with their values."""
    keys = {}
    for key, value in config.items():
        leaf = not isinstance(value, dict) or key == "mixture"
        keys |= {prefix + key: value} if leaf else flat(value, f"{prefix}{key}.")
    return keys


def test_configs_md_has_the_tables_of_the_dataclasses():
    page = PAGES["docs/configs.md"]
    assert tables.with_tables(page) == page
    sections = {key.name for key in keys_of(RunConfig).values() if tables.is_section(key)}
    assert set(re.findall(r"<!-- docs\.tables: (\S+) -->", page)) == {
        "run",
        "model.attention",
        *sections,
    }


def test_every_key_of_the_common_config_is_in_a_table():
    keys = set(re.findall(r"^\| `([\w.]+)` \| `.*?` \|", PAGES["docs/configs.md"], re.M))
    assert keys >= set(flat(common.get_config().to_dict()))
