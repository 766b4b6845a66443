"""benchmarks.decode's grid, tables and plots, without a GPU."""

import collections

import pytest

from benchmarks import decode, decode_grid, decode_plots, decode_tables, peers, published
from benchmarks.record import read


@pytest.fixture
def record():
    return read("decode_nvidia_h200.json")


def test_the_grid_is_the_papers():
    paper = [
        (heads, batch) for name, heads, batch, _ in decode_grid.grid(False) if name == decode.PAPER
    ]
    assert paper == [(heads, batch) for heads in (16, 32, 48) for batch in (1, 2, 4, 8, 16)]
    for *_, lengths in decode_grid.grid(False)[:15]:
        assert lengths == [2**i for i in range(12, 20)]


def test_the_papers_figures_have_the_papers_widths():
    # section 5.2: "1024 (16 heads, Figure 8) and 3072 (48 heads, Figure 7)", heads of 64
    assert decode_plots.FIGURES == {5: (32, 2048), 7: (48, 3072), 8: (16, 1024)}


def test_every_mechanism_is_timed_at_every_batch_of_the_grid(monkeypatch):
    timed = {}

    def run(module, _, cases):
        timed[module] = cases
        return []

    monkeypatch.setattr(decode.other_kernels, "run", run)
    monkeypatch.setattr(decode.published, "compile_ahead", lambda *_: None)
    decode.time_peers("DIR", decode_grid.grid(False))
    decode.time_published("DIR", decode_grid.grid(False))
    seen = collections.defaultdict(set)
    for case in timed["benchmarks.peers"] + timed["benchmarks.published"]:
        seen[case["name"], case["implementation"], case["heads"]].add(
            (case["batch"], case["length"])
        )
    grid = {(batch, length) for batch in decode_grid.BATCHES for length in decode_grid.LENGTHS}
    for name in (*peers.ATTENTION, "FlashMLA"):
        for heads in decode_grid.PAPER_HEADS:
            kind = "FlashMLA" if name == "FlashMLA" else "FlashAttention-3"
            assert seen[name, kind, heads] == grid
    compiled = {(b, m) for b, m in grid if m in decode_grid.COMPILED_LENGTHS}
    assert seen[decode.PAPER, "published Triton", 32] == compiled
    for name, heads in decode_grid.TRAINED_HEADS.items():
        for implementation in published.IMPLEMENTATIONS:
            assert (16, 2**17) in seen[name, implementation, heads]


def test_bytes_of_a_cache_are_the_papers_numbers_a_token():
    tokens = {case["name"]: case["cache_bytes"] / 2**12 for case in peers.cases(32, 1, [2**12])}
    assert tokens == {
        "FlashAttention-3 MHA": 8192,
        "FlashAttention-3 GQA-4": 1024,
        "FlashAttention-3 MQA": 256,
        "FlashMLA": 1152,
    }
    (case,) = published.cases(decode.PAPER, 32, (16, 1, 1), 1, [2**12])
    assert case["useful_bytes"] / 2**12 == 384


def test_every_kind_of_result_has_a_colour_of_its_own(record):
    looks = [(colour, marker) for _, colour, marker in decode_plots.KINDS.values()]
    labels = [label for label, *_ in decode_plots.KINDS.values()]
    assert len(set(looks)) == len(set(labels)) == len(decode_plots.KINDS)
    assert not any("peer" in label for label in labels)
    for r in record["results"]:
        assert (r["name"], r["implementation"]) in decode_plots.KINDS


def test_plots_are_drawn_from_a_record(record, tmp_path):
    drawn = decode_plots.draw(record, tmp_path)
    assert [path.name for path in drawn] == [
        "decode_figure_5.png",
        "decode_figure_7.png",
        "decode_figure_8.png",
        "decode_roofline.png",
    ]
    assert all(path.stat().st_size > 10_000 for path in drawn)


def test_the_authors_kernel_has_a_column_and_its_failures_a_reason(record, tmp_path):
    assert "authors'" not in decode_tables.compared(record)
    made = []
    for heads, name, ranks in ((32, decode.PAPER, (16, 1, 1)), (78, "T6 XL", (6, 2, 2))):
        for batch in (1, 16):
            for case in published.cases(name, heads, ranks, batch, [2**12, 2**17]):
                ran = case["implementation"] == "published Triton"
                found = {"microseconds": 123.4} if ran else {"failed": "no room"}
                made.append(case | found)
    record["results"] += made
    table = decode_tables.compared(record)
    assert "| plain XLA | authors' Triton | FA3 MHA |" in table
    assert "| 16, 2^17 | **188.7** | 4.27 | 682.8 | 123.4 | 3888.0 |" in table
    assert "| XL, H = 78 | 46.7 | 69 % | 123.4 | - | 557.7 | 92 % | 123.4 | - |" in table
    assert table.endswith(
        "published Triton, no copy did not run in 4 cases; H = 78, B = 1, 4,096 tokens: no room"
    )
    assert "no room" in "\n".join(decode_tables.every_result(record))
    decode_plots.draw(record, tmp_path)


def test_a_record_is_completed_by_a_second_run(record):
    def part(heads):
        kept = [r for r in record["results"] if r["heads"] in heads]
        return record | {"results": kept, "cases": record["cases"] if 32 in heads else []}

    first, second = part({32, 34, 47, 61, 78}), part({16, 48})
    assert first["results"] and second["results"]
    whole = decode.updated(first, second)
    assert whole["cases"] == record["cases"]
    assert sorted(map(str, whole["results"])) == sorted(map(str, record["results"]))
    assert decode.updated(whole, second)["results"][-1] == whole["results"][-1]
    assert len(decode.updated(whole, second)["results"]) == len(record["results"])
    with pytest.raises(SystemExit, match="--update: the record's commit is"):
        decode.updated(first, second | {"commit": "another"})
