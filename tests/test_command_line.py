"""How programs parse their options and end."""

import io
import sys

import pytest

from t6jax import InputError
from t6jax.command_line import Parser, exit_status


@pytest.fixture
def parser() -> Parser:
    parser = Parser("t6jax.example", "Does nothing.")
    parser.add_argument("--source", required=True, help="what to read")
    parser.add_argument("--workers", type=int, default=3, help="processes")
    parser.add_argument("--subset", default="", help="a part of it")
    return parser


def test_values_and_defaults(parser):
    args = parser.parse_args(["--source=a", "--subset", "b"])
    assert vars(args) == {"source": "a", "workers": 3, "subset": "b"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sorce=a"], "--sorce: there is no such option; did you mean --source?"),
        (["--source=a", "--worker", "2"], "--worker: there is no such option; did you mean --wo"),
        (["--source=a", "--xyz"], "--xyz: there is no such option; --help lists them"),
        (["--workers=2"], "the following arguments are required: --source"),
        (["--source=a", "--workers=many"], "argument --workers: invalid int value: 'many'"),
        (["--source=a", "b"], "unrecognized arguments: b"),
    ],
)
def test_a_mistake_is_one_sentence(parser, arguments, message):
    with pytest.raises(InputError) as error:
        parser.parse_args(arguments)
    assert str(error.value).startswith(message)


def test_help_marks_required_options_and_shows_defaults(parser):
    text = " ".join(parser.format_help().split())
    assert "--source SOURCE (required) what to read" in text
    assert "--workers WORKERS processes (default: 3)" in text
    assert "--subset SUBSET a part of it" in text and text.count("default") == 1


def test_exit_statuses(capsys):
    def wrong():
        raise InputError("give another --out")

    def interrupted():
        raise KeyboardInterrupt

    assert [exit_status(lambda value=value: value) for value in (None, 0, 7)] == [0, 0, 7]
    assert exit_status(wrong) == 1 and capsys.readouterr().err == "error: give another --out\n"
    assert exit_status(interrupted) == 130
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 / 0)


def test_what_a_terminal_cannot_show_is_shown_as_an_escape(monkeypatch):
    for encoding, shown in (("ascii", b"caf\\xe9 \\udcff"), ("utf-8", "café \\udcff".encode())):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        assert exit_status(lambda: print("café \udcff", end="", flush=True)) == 0
        assert raw.getvalue() == shown
