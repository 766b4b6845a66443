"""The flags of train.py, eval.py and generate.py: absl's, and --config.KEY=VALUE."""

import difflib
import inspect
import os
import pathlib
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from t6jax.command_line import exit_status
from t6jax.errors import InputError
from t6jax.extras import needs

with needs("train"):
    import absl.logging
    from absl import app, flags

WIDTH = 100
REQUIRED = "(required)"  # how the help of a required flag begins
HELP = ("-h", "-help", "--help", "--helpshort", "--helpfull")
RUNS_CONFIG = (
    "The config is the run's own, which training wrote to its config.json; `python train.py "
    "--help` lists the keys."
)


def run(main: Callable[..., int], *, overrides: bool = False) -> None:
    """Parses absl's flags, runs main(argv) and exits.

    An InputError, or a flag that does not parse, ends the program with one sentence.

    Args:
        overrides: --config.KEY=VALUE may be given; main(argv, overrides) takes the pairs.
    """
    # XLA's and Orbax's notes on their own workings; XLA's errors still show, and Orbax raises those
    # that it logs
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl.logging.set_verbosity(absl.logging.FATAL)
    here = str(pathlib.Path.cwd())
    if here not in sys.path:  # as python -m has it: a mechanism of one's own may lie there
        sys.path.append(here)
    given: list[Any] = []

    def parse(argv: list[str]) -> list[str]:
        if any(argument in HELP for argument in argv[1:]):
            usage = inspect.getdoc(inspect.getmodule(main)) or ""
            sys.exit(exit_status(lambda: _print(help_text(usage, argv, config_keys=overrides))))
        if overrides:
            from t6jax.programs.config_file import split_overrides

            argv, found = split_overrides(argv)
            given.append(found)
        rest: list[str] = []
        if status := exit_status(lambda: rest.extend(_parse(argv))):
            sys.exit(status)
        return rest

    app.run(lambda argv: exit_status(lambda: main(argv, *given)), flags_parser=parse)


def help_text(usage: str, argv: list[str], *, config_keys: bool) -> str:
    """What --help prints: the usage, the flags, and the config's keys or where they are.

    Args:
        usage: what comes first.
        argv: the command line; a --config there is the one whose values are shown.
        config_keys: list the config's keys.
    """
    lines = [usage, "", "flags:"]
    for flag in sorted(_flags(), key=lambda f: (REQUIRED not in f.help, f.name)):
        name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
        default = "" if flag.default is None else f" (default {flag.default})"
        lines += entry(name + default, flag.help.partition(";\n")[0])
    if config_keys:
        from t6jax.programs.config_file import load_config
        from t6jax.programs.config_keys import listing

        files = [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
        lines += ["", *listing(entry, load_config(files[-1], []) if files else None)]
    else:
        lines += ["", *textwrap.wrap(RUNS_CONFIG, WIDTH)]
    return "\n".join(lines)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def entry(name: str, text: str) -> list[str]:
    """A name and, indented below it, what it means."""
    indent = " " * 6
    return [
        f"  {name}",
        *textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent),
    ]


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as e:
        near = difflib.get_close_matches(e.flagname, [flag.name for flag in _flags()], n=1)
        meant = f"did you mean --{near[0]}?" if near else "--help lists them"
        raise InputError(f"--{e.flagname}: there is no such flag; {meant}") from e
    except flags.Error as e:
        for flag in _flags():
            if flag.value is None and flag.help.startswith(REQUIRED):
                # without what absl adds of flags that may be repeated
                meaning = flag.help.removeprefix(REQUIRED).split(";\n")[0].strip()
                raise InputError(f"--{flag.name} is required: {meaning} (see --help)") from e
        raise InputError(f"{' '.join(str(e).split())} (see --help)") from e
    if len(rest) > 1:
        raise InputError(f"{rest[1]!r} is not a flag; flags begin with -- (see --help)")
    return rest


def _flags() -> list[flags.Flag]:
    """The flags that the program itself defines."""
    return flags.FLAGS.get_key_flags_for_module(sys.argv[0])
