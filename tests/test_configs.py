"""The configs are the paper's: Tables 9 and 10 and section J.1, their parameter counts, and the
table that describes them.
"""

import math
import pathlib
import subprocess
import sys

import jax
import pytest
from flax import nnx

from t6jax.config import RunConfig
from t6jax.model import abstract
from t6jax.programs.describe import model_config, row, table
from t6jax.training.layout import mesh_for
from tests.conftest import ROOT, process_options

CONFIGS = ROOT / "configs"
SIZES = {"small": 124e6, "medium": 353e6, "large": 772e6, "xl": 1.55e9}
# Table 10, small MLA's 12 read as the published config's 13
HEADS = {
    "mha": (12, 16, 20, 25),
    "mqa": (23, 31, 39, 49),
    "gqa": (22, 30, 38, 48),
    "mla": (13, 23, 34, 49),
    "tpa_kvonly": (22, 29, 37, 47),
    "tpa": (34, 47, 61, 78),
}
# Table 9, but for XL twice its accumulation steps; sections J.1 and J.3
SHAPES = {
    "small": (12, 768, 5),
    "medium": (24, 1024, 3),
    "large": (36, 1280, 4),
    "xl": (48, 1600, 20),
}
LEARNING_RATES = {
    "small": (6e-4, 3e-5),
    "medium": (6e-4, 3e-5),
    "large": (2e-4, 1e-5),
    "xl": (1e-4, 1e-5),
}
ABLATIONS = (
    "xl_tpa_kvonly_r4",
    "xl_tpa_kvonly_r6",
    "small_tpa_nonctx_a",
    "small_tpa_nonctx_b",
    "medium_tpa_nonctx_a",
    "medium_tpa_nonctx_b",
    "small_tpa_order3",
    "medium_tpa_lr3e-4",
    "medium_mla_matched",
    "large_mla_matched",
    "xl_mla_matched",
)
NAMES = [f"{size}_{mechanism}" for size in SIZES for mechanism in HEADS] + list(ABLATIONS)
# Table 10's d_c = 512 and d_c' = 1024, which the published configs have too, give these more than
# the 353 M, 772 M and 1.55 B that Table 9 says; with 256 and 512 their head counts are MHA's count
# (the *_mla_matched configs)
OVER = {"medium_mla": 417_976_320, "large_mla": 909_321_216, "xl_mla": 1_810_065_408}


def load(name: str):
    namespace = {}
    exec(compile((CONFIGS / f"{name}.py").read_text(), name, "exec"), namespace)
    return namespace["get_config"]()


def test_every_config_of_the_paper_is_there():
    assert {p.stem for p in CONFIGS.glob("*_*.py")} >= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_builds_abstractly_with_the_papers_parameter_count(name):
    config = load(name)
    run = RunConfig.from_dict(config.to_dict())
    mesh_for(run, plan=True)  # accepted
    model = run.model
    # from the shapes of the arrays, none of which is made
    counted = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(abstract(model))))
    assert counted == model.parameter_count
    if name in OVER:
        assert counted == OVER[name]
        return
    assert (
        abs(counted / SIZES[name.split("_")[0]] - 1) < 0.01
    )  # the paper's figure has three digits
    mha = model_config(CONFIGS / f"{name.split('_')[0]}_mha.py").parameter_count
    assert abs(counted / mha - 1) < 0.02


@pytest.mark.parametrize("mechanism", HEADS)
@pytest.mark.parametrize("size", SIZES)
def test_a_config_has_tables_9_and_10s_values(mechanism, size):
    config = load(f"{size}_{mechanism}").to_dict()
    model, optimizer = config["model"], config["optimizer"]
    attention = model["attention"]
    assert (model["num_layers"], model["d_model"], config["accumulation_steps"]) == SHAPES[size]
    assert (attention["name"], attention["head_dim"]) == (mechanism, 64)
    assert attention["num_heads"] == HEADS[mechanism][list(SIZES).index(size)]
    own = {
        "gqa": {"num_kv_heads": 2},
        "mla": {
            "rope_dim": 32,
            "kv_rank": 256 if size == "small" else 512,
            "q_rank": 512 if size == "small" else 1024,
        },
        "tpa": {"rank_q": 6, "rank_k": 2, "rank_v": 2},
        "tpa_kvonly": {"rank_k": 2, "rank_v": 2},
    }.get(mechanism, {})
    assert own.items() <= attention.items()
    assert (optimizer["learning_rate"], optimizer["min_learning_rate"]) == LEARNING_RATES[size]
    assert (config["batch_size"], model["context_length"], config["steps"]) == (480, 1024, 100_000)
    assert (optimizer["warmup_steps"], optimizer["weight_decay"], optimizer["clip_norm"]) == (
        2000,
        0.1,
        1.0,
    )
    assert (optimizer["beta_1"], optimizer["beta_2"], model["vocab_size"]) == (0.9, 0.95, 50304)


def test_the_learning_rate_ablation_differs_in_nothing_else():
    ablation, base = load("medium_tpa_lr3e-4").to_dict(), load("medium_tpa").to_dict()
    assert (ablation["optimizer"]["learning_rate"], ablation["optimizer"]["min_learning_rate"]) == (
        3e-4,
        6e-5,
    )
    base["optimizer"] |= {"learning_rate": 3e-4, "min_learning_rate": 6e-5}
    assert ablation == base


def test_a_config_file_is_a_few_lines():
    for name in NAMES:
        assert len((CONFIGS / f"{name}.py").read_text().splitlines()) <= 13


def test_describe_prints_a_row_of_counts_and_ratios():
    xl = row("xl_tpa", model_config(CONFIGS / "xl_tpa.py"))
    # (2 + 2)(78 + 64) numbers a layer, against 2 x 1600
    assert xl == (
        "xl_tpa",
        "tpa",
        "48",
        "1600",
        "78",
        "1,555,814,400",
        "1.001",
        f"{48 * 568 * 2:,}",
        f"{568 / 3200:.3f}",
    )
    lines = table(
        [str(CONFIGS / "small_mha.py"), str(CONFIGS / "small_mla.py"), str(CONFIGS / "__init__.py")]
    ).splitlines()
    assert (
        len(lines) == 3 and lines[1].startswith("small_mha") and lines[1].rstrip().endswith("1.000")
    )


@pytest.mark.slow
def test_describe_runs_from_the_command_line():
    run = lambda *a: subprocess.run(
        [sys.executable, "-m", "t6jax.programs.describe", *a],
        **process_options(),
        capture_output=True,
        check=False,
    )
    done = run(*sorted(str(p.relative_to(ROOT)) for p in CONFIGS.glob("*.py")))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(
        list(CONFIGS.glob("*.py"))
    )  # a header, and all but __init__.py
    done = run("configs/none.py")
    assert (
        done.returncode == 1
        and done.stderr == "error: configs/none.py: there is no such config file\n"
    )
    assert not pathlib.Path("configs/none.py").exists()
