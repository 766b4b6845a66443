"""Sources: every document with text is read once, in order, whatever the format.

What is damaged or missing is named.
"""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t6jax import InputError
from t6jax.data import remote
from t6jax.data.sources import Plan, make_plan, read_unit
from tests.data.corpora import documents, with_empty_ones, write_jsonl, write_parquet

HUGE = "tensor product attention 日本語 " * 10_000


def plan_of(source, subset="", unit_bytes=3000, **options):
    return make_plan(
        str(source),
        subset,
        validation_fraction=0.1,
        validation_bytes=10**8,
        unit_bytes=unit_bytes,
        **options,
    )


def read(plan: Plan) -> list[str]:
    return [text.decode() for unit in plan.units for text in read_unit(plan, unit)]


@pytest.fixture
def corpus():
    return [*documents(60), HUGE, *documents(20, seed=1)]


def test_parquet_with_fineweb_edus_columns(tmp_path, corpus):
    write_parquet(tmp_path / "000_00000.parquet", with_empty_ones(corpus[:50]))
    write_parquet(tmp_path / "sub" / "000_00001.parquet", with_empty_ones(corpus[50:]))
    (tmp_path / ".cache").mkdir()
    write_parquet(tmp_path / ".cache" / "x.parquet", ["hidden"])
    (tmp_path / "README.md").write_text("no document")
    plan = plan_of(tmp_path)
    assert read(plan) == corpus
    assert {u.path for u in plan.units} == {"000_00000.parquet", "sub/000_00001.parquet"}
    assert len(plan.units) > 4 and plan.validation_units == 0
    assert Plan.from_json(plan.to_json()) == plan
    assert read(plan_of(tmp_path, unit_bytes=10**9)) == corpus
    assert read(plan_of(tmp_path, "sub")) == corpus[50:]
    assert read(plan_of(tmp_path / "000_00000.parquet")) == corpus[:50]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_jsonl(tmp_path, corpus, suffix):
    write_jsonl(tmp_path / f"a{suffix}", with_empty_ones(corpus[:50]))
    write_jsonl(tmp_path / f"b{suffix}", with_empty_ones(corpus[50:]))
    for unit_bytes in (1000, 30_001, 10**9):
        assert read(plan_of(tmp_path, unit_bytes=unit_bytes)) == corpus


def test_lines_of_jsonl_belong_to_the_range_that_they_begin_in(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "a"}\n\n{"text": "b"}\r\n{"text": "\\ud83d\\ude42 \\ud83d"}'
    )
    for unit_bytes in (1, 2, 3, 11, 14, 15, 16, 31):
        assert read(plan_of(tmp_path, unit_bytes=unit_bytes)) == ["a", "b", "🙂 �"]


def test_text_files_validation_first(texts):
    plan = plan_of(texts)
    first = plan.units[: plan.validation_units]
    assert 0 < sum(u.size for u in first) <= 0.1 * sum(u.size for u in plan.units)
    assert sorted(read(plan)) == sorted(p.read_text() for p in texts.rglob("[0-9]*.txt"))


def test_a_url_is_read_as_the_folder_it_names(tmp_path, corpus):
    write_parquet(tmp_path / "data" / "a.parquet", corpus)
    assert read(plan_of(f"file://{tmp_path}", "data")) == corpus


def test_the_files_that_a_card_names():
    for configuration, patterns in (
        ({"data_files": "a/*"}, ["a/*"]),
        ({"data_files": ["a/*", "b.parquet"]}, ["a/*", "b.parquet"]),
        (
            {
                "data_files": [
                    {"split": "test", "path": "t/*"},
                    {"split": "train", "path": ["a/*", "b/*"]},
                ]
            },
            ["a/*", "b/*"],
        ),
        ({"data_files": [{"split": "test", "path": "t/*"}]}, ["t/*"]),
        ({"data_dir": "a/"}, ["a/**"]),
        ({"data_dir": "a", "data_files": "*.parquet"}, ["a/*.parquet"]),
        ({}, ["**"]),
    ):
        assert remote._patterns(configuration) == patterns


def test_a_network_is_waited_for_as_long_as_it_asks(monkeypatch):
    waits, error = [], remote.UnavailableError("no answer")
    monkeypatch.setattr("time.sleep", waits.append)
    error.wait = 9

    def call():
        raise error

    with pytest.raises(InputError, match="no answer"):
        remote.with_retries(call)
    assert waits == [9, 9, 16, 64]
    assert [
        remote._asked_to_wait(h)
        for h in ({}, {"Retry-After": "3"}, {"RateLimit": '"api";r=0;t=55'})
    ] == [0, 4, 56]


def test_a_truncated_parquet_file_is_named(tmp_path, corpus):
    path = tmp_path / "a.parquet"
    write_parquet(path, corpus)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        InputError, match=r"a\.parquet cannot be read to its end .*download it again"
    ):
        plan_of(tmp_path)
    # damage that only shows when the rows are read
    path.write_bytes(whole[:200] + bytes(2000) + whole[2200:])
    plan = plan_of(tmp_path)
    with pytest.raises(InputError, match=r"a\.parquet cannot be read to its end"):
        read(plan)


def test_truncated_and_damaged_jsonl_is_named(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", documents(20))
    whole = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(whole[:-5])
    with pytest.raises(
        InputError, match=r"a\.jsonl is damaged: no JSON object in the line at byte \d+"
    ):
        read(plan_of(tmp_path))
    (tmp_path / "a.jsonl").unlink()
    write_jsonl(tmp_path / "a.jsonl.gz", documents(200))
    data = (tmp_path / "a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz (cannot be read to its end|is damaged)"):
        read(plan_of(tmp_path))


def test_another_key_holds_the_text(tmp_path, corpus):
    lines = [json.dumps({"id": 1, "content": text}) for text in corpus]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.table({"id": range(81), "content": corpus}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        plan = plan_of(tmp_path / name, text_key="content")
        assert read(plan) == read(Plan.from_json(plan.to_json())) == corpus


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"id": 1, "content": "x"}',
            "a.jsonl has no key 'text' in the line at byte 0; its keys are id, content: name the "
            "one with the text by --text_key",
        ),
        ("{}", "a.jsonl has no key 'text' in the line at byte 0; its keys are none"),
        ('{"text": ["x"]}', "the value of 'text' in the line at byte 0 is no string, but list"),
        ("[1]", "a.jsonl: the line at byte 0 is no JSON object, but list"),
    ],
)
def test_a_first_line_without_text_is_named_before_anything_is_written(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(f"{line}\n")
    with pytest.raises(InputError) as error:
        plan_of(tmp_path)
    assert message in str(error.value)


def test_a_later_line_without_text_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"content": "y"}\n')
    with pytest.raises(InputError, match="has no key 'text' in the line at byte 14; its keys are"):
        read(plan_of(tmp_path))


def test_plain_text_has_no_keys(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match=r"--text_key=content is for \.jsonl and \.parquet"):
        plan_of(tmp_path, text_key="content")


def test_what_is_no_source_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere': there is no such file or folder"):
        plan_of("nowhere")
    with pytest.raises(InputError, match="holds no text"):
        plan_of(tmp_path)
    pq.write_table(pa.table({"id": [1], "content": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(
        InputError, match=r"a\.parquet has no column 'text'; its columns are id, content: name the"
    ):
        plan_of(tmp_path)
