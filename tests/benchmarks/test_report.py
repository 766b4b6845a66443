"""What is generated from the recorded results is what they say."""

import pytest

from benchmarks import report, results_index
from benchmarks.record import RESULTS


@pytest.mark.parametrize("path", report.pages(), ids=lambda path: path.name)
def test_the_tables_of_a_page_are_those_of_the_records(path):
    text = path.read_text()
    assert report.with_records(text) == text


def test_every_table_is_on_a_page():
    text = "\n".join(page.read_text() for page in report.pages())
    for name in report.TABLES:
        assert f"<!-- benchmarks.report: {name} -->\n" in text, name


def test_every_marker_names_a_table():
    for page in report.pages():
        for line in page.read_text().splitlines():
            if line.startswith("<!-- benchmarks.report: "):
                assert line.split(": ", 1)[1].removesuffix(" -->") in report.TABLES


def test_the_index_lists_every_record_and_every_plot():
    index = (RESULTS / "README.md").read_text()
    assert index == results_index.page()
    files = [path.name for path in RESULTS.iterdir() if path.suffix in (".json", ".png")]
    assert len(files) >= 18
    for name in files:
        assert f"[{name}]({name})" in index, name


def test_check_names_what_is_out_of_date(monkeypatch, tmp_path):
    page = report.ROOT / "README.md"
    stale = tmp_path / "README.md"
    stale.write_text(page.read_text().replace("**725.7**", "**1.0**"))
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "pages", lambda: [stale])
    monkeypatch.setattr("sys.argv", ["report", "--check"])
    with pytest.raises(SystemExit, match=r"out of date: README\.md; run python -m benchmarks"):
        report.main()
    assert "**1.0**" in stale.read_text()
    stale.write_text(page.read_text())
    report.main()
