"""Sources: every document with text is read once, in order, whatever the format.

What is damaged or missing is named.
"""

import bz2
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t6jax import InputError
from t6jax.data import records, remote
from t6jax.data.documents import documents as documents_in
from t6jax.data.listing import kind_of
from t6jax.data.sources import Plan, make_plan, read_texts, read_unit
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
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
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
        assert read(plan) == read(Plan.from_dict(json.loads(json.dumps(plan.to_dict())))) == corpus


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


GOOD = b'{"text": "x"}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b'{"text": "caf\xe9"}\n',
            r"the line at byte 14 is not UTF-8 at byte 27 \(0xe9\): convert",
        ),
        (b'{"text": "x", "m": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "nests JSON deeper"),
        (b"\0" * 100 + b"\n", r"no JSON object in the line at byte 14 .*; mend or remove the line"),
        (b'{"text": "x"', r"no JSON object in the line at byte 14 .*; it is cut: get it again"),
    ],
)
def test_what_is_wrong_with_a_line_is_named_and_no_download_blamed(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(GOOD + line)
    with pytest.raises(InputError, match=f"a.jsonl.*{message}") as error:
        read(plan_of(tmp_path))
    assert "download" not in str(error.value)


def test_other_fields_may_hold_what_they_like(tmp_path):
    line = '{"id": ' + "9" * 5000 + ', "score": NaN, "text": "y", "n": -0.0}\n'
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD + line.encode() + GOOD)
    for unit_bytes in (1, 20, 10**9):
        assert read(plan_of(tmp_path, unit_bytes=unit_bytes)) == ["x", "y", "x"]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([["a", "b"]] * 3, "list<element: string>"),
        ([{"v": "a"}] * 3, "struct<v: string>"),
        ([1, 2, 3], "int64"),
    ],
)
def test_a_column_without_strings_is_named(tmp_path, column, kind):
    pq.write_table(pa.table({"text": column, "body": ["x"] * 3}), tmp_path / "a.parquet")
    with pytest.raises(
        InputError,
        match=f"the column 'text' holds no strings, but {kind}; its columns are text, body: name",
    ):
        plan_of(tmp_path)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()]
)
def test_a_column_of_any_kind_of_strings_is_read(tmp_path, kind):
    column = pa.array(["a", None, "日本"]).cast(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert read(plan_of(tmp_path)) == ["a", "日本"]


def test_bytes_that_are_no_utf_8_are_named(tmp_path):
    column = pa.array([b"caf\xe9", b"ok"], pa.binary())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="'text' holds what is not UTF-8 in row groups 0 to 0"):
        read(plan_of(tmp_path))


def test_messages_and_names_hide_what_opens_a_url():
    url = "https://me:word@host/a.jsonl?sig=abc"
    assert remote.shown(url, "b") == "https://host/a.jsonl"
    assert remote.shown("zip://*.jsonl::" + url) == "zip://*.jsonl::https://host/a.jsonl"
    for same in (
        "hf://datasets/o/n@1f2e/x",
        "abfs://container@account.dfs.core.windows.net/a",
        "s3://bucket/a@b.jsonl",
        "what? it is no URL",
        "me@host",
    ):
        assert remote.shown(same) == same
    with pytest.raises(InputError) as error, remote.reading(url):
        raise RuntimeError(f"403 for url='{url}' in {url}")
    assert not any(secret in str(error.value) for secret in ("me:", "word", "sig", "abc"))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.txt"])
def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch, name):
    write = write_parquet if name.endswith("parquet") else write_jsonl
    write(tmp_path / name, ["x"] * 9)
    plan = plan_of(tmp_path / name) if name != "a.txt" else None

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", str(tmp_path / name))

    records._metadata_of_last.cache_clear()
    monkeypatch.setattr("pathlib.Path.open", refuse)
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    monkeypatch.setattr("datatrove.io.DataFolder.open", refuse)
    with pytest.raises(InputError, match=rf"{name} cannot be read \(Permission denied\): check"):
        read(plan if plan else plan_of(tmp_path / name))


def test_files_that_change_while_they_are_read_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 100)
    (tmp_path / "b.txt").write_text("b" * 100)
    plan = plan_of(tmp_path)
    (tmp_path / "c.txt").write_text("c" * 100)
    with pytest.raises(InputError, match="changed while they are prepared"):
        read(plan)


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


RECORDS = "".join(json.dumps({"text": text}) + "\n" for text in ("one", "two", "three"))


@pytest.mark.parametrize(
    "name",
    [
        "a.ndjson",
        "a.JSONL",
        "a.NDJSON.GZ",
        "a.json.gz",
        "a.jsonl.bz2",
        "x.jsonl/part-0",
        "x.jsonl/part-00000-af.c000.json",
        "x.jsonl/part-1.gz",
    ],
)
def test_json_lines_go_by_several_names(tmp_path, name):
    path = tmp_path / "source" / name
    path.parent.mkdir(parents=True)
    data = RECORDS.encode()
    if name.lower().endswith(".gz"):
        data = gzip.compress(data)
    elif name.endswith(".bz2"):
        data = bz2.compress(data)
    path.write_bytes(data)
    (path.parent / "_SUCCESS").touch()
    for source in {tmp_path / "source", path.parent}:
        assert read(plan_of(source)) == ["one", "two", "three"]
        assert [*read_texts(str(source))] == [b"one", b"two", b"three"]


def test_the_name_of_a_file_or_else_of_its_folder_says_its_format():
    for name, folder, kind in (
        ("a.parquet", "", "parquet"),
        ("A.Parquet", "", "parquet"),
        ("x.parquet/part-0", "", "parquet"),
        ("part-0", "s3://bucket/x.jsonl/", "jsonl"),
        ("x.parquet/a.jsonl", "", "jsonl"),
        ("x.jsonl/_SUCCESS", "", "text"),
        ("a.json", "", "text"),
        ("jsonl", "", "text"),
        ("a.jsonl.txt", "", "text"),
    ):
        assert kind_of(name, folder) == kind, name


@pytest.mark.parametrize("name", ["c4-train.00000.json", "part-0", "data.txt"])
def test_json_lines_by_another_name_are_refused(tmp_path, name):
    (tmp_path / name).write_text(RECORDS * 10)
    (tmp_path / "README").write_text("about the data")
    message = f"{name} holds JSON lines, whose texts are read if its name, .* ends with .jsonl"
    for read_it in (lambda: plan_of(tmp_path), lambda: [*read_texts(str(tmp_path))]):
        with pytest.raises(InputError, match=message):
            read_it()
    (tmp_path / "book.txt").write_text("a text " * 1000)  # now most of it is no JSON
    assert len(read(plan_of(tmp_path))) == 3


def test_one_json_object_in_a_file_is_a_text(tmp_path):
    (tmp_path / "a.json").write_text('{"name": "t6jax"}\n')
    (tmp_path / "b.json").write_text('{\n "name": "t6jax"\n}\n')
    assert len(read(plan_of(tmp_path))) == 2


def test_linked_folders_and_files_are_read_each_once(tmp_path, texts):
    source, other = tmp_path / "source", tmp_path / "other"
    (source / "own").mkdir(parents=True)
    (source / "own" / "a.txt").write_text("own text")
    (other / "deep").mkdir(parents=True)
    (other / "b.txt").write_text("linked text")
    (other / "deep" / "c.txt").write_text("deep text")
    (tmp_path / "d.txt").write_text("a linked file")
    for name, target in (
        ("linked", other),
        ("again", other / "deep"),
        ("a_link_to_own", source / "own"),
        ("own/loop", source),
        ("d.txt", tmp_path / "d.txt"),
    ):
        (source / name).symlink_to(target)
    plan = plan_of(source)
    assert sorted(read(plan)) == ["a linked file", "deep text", "linked text", "own text"]
    names = {d.name for d in documents_in(str(source))}
    assert {"own/a.txt", "linked/b.txt", "d.txt"} <= names
    records = tmp_path / "records"
    records.mkdir()
    (records / "a.jsonl").write_text(RECORDS)
    (source / "records").symlink_to(records)
    assert read(plan_of(source)) == ["one", "two", "three"]


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"b.txt is a link to .*gone', which cannot be read \(No"):
        plan_of(tmp_path)
    (tmp_path / "b.txt").unlink()
    (tmp_path / "b.txt").symlink_to(tmp_path / "b.txt")
    with pytest.raises(InputError, match="b.txt is a link to"):
        plan_of(tmp_path)


def test_text_that_would_be_passed_over_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("plain text")
    (tmp_path / "b.txt").write_text("text of Notepad", "utf-16")
    with pytest.raises(InputError, match="b.txt is UTF-16: save it as UTF-8"):
        plan_of(tmp_path)
    (tmp_path / "b.txt").write_bytes(gzip.compress(b"text " * 1000))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(InputError, match="holds no text .*b.txt has NUL bytes: unpack it"):
        plan_of(tmp_path)


def test_what_is_left_out_of_a_folder(tmp_path, monkeypatch):
    for name in ("a.txt", "out/b.txt", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    plan = plan_of(".", left_out=[tmp_path / "out"])
    assert (
        sorted(read(plan))
        == sorted(read(Plan.from_dict(json.loads(json.dumps(plan.to_dict())))))
        == ["a.txt", "sub/c.txt"]
    )


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    for call in (lambda: plan_of(""), lambda: [*read_texts("")]):
        with pytest.raises(InputError, match="data.source is empty: name a file, a folder"):
            call()


def test_a_path_may_begin_at_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("~", "~/a.txt"):
        assert sorted("".join(read(plan_of(source)))) == sorted("text")
