"""The README tells the truth: its snippets run, its numbers are recorded, its matrix is the
kernels' own.
"""

import pathlib
import re
import sys
import types

import jax.numpy as jnp
import pytest

from benchmarks import report
from benchmarks.record import read
from pallas_kernels.attention import forward, gradient
from pallas_kernels.decode import mosaic_gpu, triton
from pallas_kernels.decode.cache_layout import CacheLayout
from t6jax.config import RunConfig
from t6jax.programs import describe
from t6jax.training.loop import train
from tests.conftest import ROOT, tiny_run
from tests.docs.pages import python_blocks

README = (ROOT / "README.md").read_text()
# the columns of the support matrix: GPU, dtype, D, H, N, measured
MATRIX = {
    (what.strip(), implementation.strip()): [cell.strip() for cell in cells]
    for what, implementation, *cells in (
        line.strip("|\n").split("|") for line in README.splitlines() if line.count("|") == 9
    )
}
DIMS = (8, 16, 32, 48, 64, 96, 128, 256)


def row(what: str, implementation: str) -> list[str]:
    """The cells of the one row whose first cells begin so."""
    ((_, cells),) = (
        (key, cells)
        for key, cells in MATRIX.items()
        if key[0].startswith(what) and key[1].startswith(implementation)
    )
    return cells


@pytest.fixture(scope="module")
def trained_run(texts, tmp_path_factory) -> pathlib.Path:
    """The directory of a run of a second."""
    workdir = tmp_path_factory.mktemp("run")
    train(RunConfig.from_dict(tiny_run(texts)), workdir)
    return workdir


def test_the_matrix_has_its_rows():
    for what in ("decode", "attention, forward", "attention, gradient"):
        assert row(what, "Mosaic GPU")
    assert row("decode", "Triton") and row("decode", "plain JAX")


def test_it_fits_on_two_screens():
    assert len(README.splitlines()) <= 200


def test_snippets_run(trained_run: pathlib.Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = python_blocks(README)
    assert blocks, "there are snippets"
    for block in blocks:
        exec(compile(block.replace("runs/mine", str(trained_run)), "README.md", "exec"), {})


def test_the_config_shown_is_the_quickstarts():
    text = (ROOT / "configs" / "quickstart.py").read_text()
    assert text.partition("\n\n")[2].strip() in [block.strip() for block in python_blocks(README)]


@pytest.mark.parametrize(("kernel", "name"), [(mosaic_gpu, "Mosaic GPU"), (triton, "Triton")])
def test_decode_kernels_take_what_the_matrix_says(kernel, name, monkeypatch):
    for module in ("jax_triton", "pallas_kernels.decode.triton_kernels"):  # import on a GPU alone
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))

    def takes(heads: int, dim: int, dtype=jnp.bfloat16) -> bool:
        layout = CacheLayout(heads=heads, rank_k=2, rank_v=2, dim_k=dim, dim_v=dim)
        try:
            kernel.check(layout, jnp.dtype(dtype), None, 1.0)
        except NotImplementedError:
            return False
        return True

    _, dtypes, dims, heads, _, _ = row("decode", name)
    assert {d for d in DIMS if takes(32, d)} == set(map(int, dims.split(", ")))
    assert takes(128, 64) and takes(129, 64) == (heads == "any")
    assert heads in ("any", "≤ 128") and dtypes == "bf16, fp16"
    assert takes(32, 64, jnp.float16) and not takes(32, 64, jnp.float32)


@pytest.mark.parametrize(("kernel", "what"), [(forward, "forward"), (gradient, "gradient")])
def test_attention_kernels_take_what_the_matrix_says(kernel, what):
    def takes(dim: int, dtype=jnp.bfloat16) -> bool:
        x = jnp.zeros((1, 128, 3, dim), dtype)
        return kernel.unsupported(x, x, x) is None

    _, dtypes, dims, *_ = row(f"attention, {what}", "Mosaic GPU")
    assert [d for d in DIMS if takes(d)] == [int(dims)]
    taken = {"bf16": jnp.bfloat16, "fp16": jnp.float16, "fp32": jnp.float32}
    assert {n for n, dtype in taken.items() if takes(64, dtype)} == set(dtypes.split(", "))


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("Mosaic GPU", "mosaic_gpu"), ("Triton", "triton"), ("plain JAX", "xla")],
)
def test_shares_of_bandwidth_are_the_best_recorded(name, implementation):
    run = read(report.DECODE)
    best = max(
        r["useful_bytes"] / r["microseconds"] * 1e6 / run["read_bytes_per_second"]
        for r in run["results"]
        if r["implementation"] == implementation
    )
    assert row("decode", name)[-1] == f"{100 * best:.0f} % of read bandwidth"


def test_rates_of_attention_are_recorded_for_t6_xl():
    table = report.with_records("<!-- benchmarks.report: attention -->\n<!-- end -->")
    rates = {
        cells[1]: (cells[3], cells[5])
        for cells in ([c.strip() for c in line.strip("|").split("|")] for line in table.split("\n"))
        if cells[0] == "T6 XL"
    }
    assert row("attention, forward", "Mosaic")[-1] == f"{rates['t6jax'][0]} TFLOP/s"
    assert row("attention, gradient", "Mosaic")[-1] == f"{rates['t6jax'][1]} TFLOP/s"
    assert row("attention", "cuDNN")[-1] == "{} forward, {} gradient".format(*rates["cuDNN"])


def test_where_other_kernels_are_ahead_is_said():
    """FA3 on MQA at some sizes, no other kernel at any."""
    results = read(report.DECODE)["results"]
    ours = {
        (r["batch"], r["length"]): r["microseconds"]
        for r in results
        if r["implementation"] == "mosaic_gpu" and (r["name"], r["heads"]) == ("TPA 16,1,1", 32)
    }
    ahead = {
        (r["name"], r["batch"], r["length"]): (r["microseconds"], ours[r["batch"], r["length"]])
        for r in results
        if r["implementation"] in ("FlashAttention-3", "FlashMLA")
        and (r["batch"], r["length"]) in ours
        and r["microseconds"] < ours[r["batch"], r["length"]]
    }
    assert {name for name, *_ in ahead} == {"FlashAttention-3 MQA"}
    theirs, mine = ahead["FlashAttention-3 MQA", 16, 2**19]
    assert f"{mine:.0f} against {theirs:.0f} us for 16 sequences of 2^19" in README


def test_how_much_smaller_the_cache_is():
    for name, config in (("small", "small_tpa"), ("XL", "xl_tpa"), ("7 B", "t6_7b")):
        m = describe.model_config(ROOT / "configs" / f"{config}.py")
        factor = m.num_layers * 2 * m.d_model / m.cached_numbers_per_token
        assert re.search(rf"{factor:.1f} times for\s+(the )?{name}", README), (name, factor)


def test_how_long_the_papers_run_takes_and_what_heads_cost():
    speed = {r["name"]: r["tokens_per_second"] for r in read(report.TRAIN)["results"]}
    tokens = 100_000 * 480 * 1024
    xl = speed["T6 XL"]
    assert f"{tokens / 1e9:.2f} B tokens at {xl:,.0f} tokens/s" in README
    assert f"takes {tokens / xl / 86400:.0f} days on one H200" in README
    slower = 1 - speed["T6 XL width, 12 layers"] / speed["MHA XL width, 12 layers"]
    assert f"TPA trains {100 * slower:.0f} % slower than MHA" in README
