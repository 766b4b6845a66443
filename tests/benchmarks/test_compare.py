"""Two records of a benchmark, compared case by case."""

import copy
import json

import pytest

from benchmarks import compare
from benchmarks.record import RESULTS, read


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("decode_nvidia_h200.json", ["microseconds"]),
        ("train_nvidia_h200.json", ["tokens_per_second"]),
        ("attention_nvidia_h200.json", ["forward_microseconds", "backward_microseconds"]),
        ("scaling_nvidia_h100_80gb_hbm3.json", ["tokens_per_second"]),
    ],
)
def test_every_number_has_a_case_of_its_own_and_a_ratio_of_speeds(name, keys):
    old, new = read(name), read(name)
    count = 0
    for result in new["results"] + new.get("cases", []):
        for key in keys:
            if key in result:
                count += 1
                result[key] *= 0.5 if "microseconds" in key else 2
    found = compare.ratios(old, new)
    assert len(found) == count > 0
    assert all(ratio == pytest.approx(2) for *_, ratio in found.values())
    assert (
        f"geometric mean 2.000 over {count} numbers; in one record only: 0 old, 0 new"
        in (compare.lines(old, new)[-1])
    )


def test_a_slowdown_beyond_the_limit_fails(monkeypatch, tmp_path, capsys):
    old = read("train_nvidia_h200.json")
    new = copy.deepcopy(old)
    new["results"][0]["tokens_per_second"] *= 0.98
    path = tmp_path / "new.json"
    path.write_text(json.dumps(new))
    argv = ["compare", str(RESULTS / "train_nvidia_h200.json"), str(path), "--within"]
    monkeypatch.setattr("sys.argv", [*argv, "0.03"])
    compare.main()
    before, after = (r["results"][0]["tokens_per_second"] for r in (old, new))
    line = f"| T6 XL, tokens_per_second | {before:,.1f} | {after:,.1f} | 0.980 |"
    assert line in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*argv, "0.01"])
    with pytest.raises(SystemExit, match=r"slower by more than 1\.0%:\nT6 XL, tokens_per_second"):
        compare.main()


def test_records_without_a_common_case_are_refused(monkeypatch):
    names = "decode_nvidia_h200.json", "train_nvidia_h200.json"
    monkeypatch.setattr("sys.argv", ["compare", *names])
    with pytest.raises(SystemExit, match="no case in common"):
        compare.main()
