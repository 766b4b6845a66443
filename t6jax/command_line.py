"""How the command-line programs parse their options, and how they end when the user can mend it.

The programs of t6jax.data, t6jax.interop and t6jax.programs take a `Parser`. train.py, eval.py and
generate.py take absl's flags (t6jax.programs.flags), which know configs. All of them end through
`exit_status`.
"""

import argparse
import difflib
import io
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from t6jax.errors import InputError


def path_argument(text: str) -> pathlib.Path:
    """The type of an option that is a path: not empty, ~ the home folder.

    Shells leave ~ alone in --out=~/x.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return pathlib.Path(text).expanduser()


class Parser(argparse.ArgumentParser):
    """argparse, with mistakes as InputErrors that name the nearest option.

    --help marks what is required and shows defaults. Options are not to be abbreviated.
    """

    def __init__(self, module: str, description: str | None):
        """
        Args:
            module: the program, which is run as python -m MODULE.
            description: what it does, or the program's docstring, whose first line says it.
        """
        summary = (description or "").split("\n")[0]
        super().__init__(f"python -m {module}", description=summary, allow_abbrev=False)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """As argparse's; `help` is required."""
        default = options.get("default")
        if options.get("required"):
            options["help"] = f"(required) {options['help']}"
        elif default not in (None, "", False, argparse.SUPPRESS):
            options["help"] += " (default: %(default)s)"
        return super().add_argument(*names, **options)

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:  # ty: ignore
        """The options' values.

        Raises:
            InputError: for what the program does not take, or lacks.
        """
        for argument in arguments:
            name = argument.split("=")[0]
            if argument == "--":
                break
            if argument.startswith("--") and name not in self._option_string_actions:
                near = difflib.get_close_matches(name, self._option_string_actions, n=1)
                meant = f"did you mean {near[0]}?" if near else "--help lists them"
                self.error(f"{name}: there is no such option; {meant}")
        return super().parse_args(arguments)

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def exit_status(program: Callable[[], int | None]) -> int:
    """Runs a program to its end.

    An InputError is printed as one sentence, without a traceback.

    Returns:
        What the program returns, 0 for None; 1 after an InputError; 130 after Ctrl-C.
    """
    # where the terminal's encoding has no such character, or a path is no text, an escape is shown
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return program() or 0
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs main(arguments) on the command line's arguments and exits."""
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
