"""How the command-line programs start and fail: absl flags, and one sentence for what the user can
put right.
"""

import difflib
import os
import sys
from collections.abc import Callable

import absl.logging
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from t6jax.errors import InputError


def run(main: Callable[[list[str]], int], *, arguments: bool = False) -> None:
    """Runs main(argv) behind absl's flags; an InputError, or a flag that does not parse, ends in
    one sentence.

    arguments: whether anything but flags may be given.
    """
    # XLA's and Orbax's notes on their own inner workings; what goes wrong still shows
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl.logging.set_verbosity(absl.logging.ERROR)
    app.run(
        lambda argv: _without_traceback(lambda: main(argv)),
        flags_parser=lambda argv: _parse(argv, arguments),
    )


def _parse(argv: list[str], arguments: bool) -> list[str]:
    try:
        rest = app.parse_flags_with_usage(argv)
    except (
        AttributeError,
        KeyError,
        TypeError,
    ) as e:  # what ml_collections raises for a wrong key or type
        if unknown := _unknown_key(argv):
            _fail(unknown)
        text = str(e.args[0] if e.args else e).strip("'\"").replace("\\n", " ").replace("\\'", "'")
        _fail(f"in the config or its overrides: {' '.join(text.split())}")
    except OSError:  # of a missing file, where an override needs it
        _fail(
            f"--config={config_flags.get_config_filename(_file_alone(argv)['config'])}: there is "
            "no such config file"
        )
    if len(rest) > 1 and not arguments:
        _fail(f"{rest[1]!r} is not a flag; flags begin with -- (see --help)")
    return rest


def _unknown_key(argv: list[str]) -> str | None:
    """A sentence on the first --config.KEY that the config of --config does not have; None where it
    has all.
    """
    try:
        values = _file_alone(argv)
    except (AttributeError, KeyError, TypeError):  # the file's own
        return None
    if not isinstance(values.config, ConfigDict):
        return None
    for argument in argv:
        name = argument.split("=")[0].lstrip("-")
        if not argument.startswith("-") or not name.startswith("config."):
            continue
        found, path = values.config, []
        for part in name.split(".")[1:]:
            where = ".".join(path) or "the config"
            if not isinstance(found, ConfigDict):
                return f"--{name}: there is no such key; {where} is a value, with no keys below it"
            if part not in found:
                near = difflib.get_close_matches(part, found, n=1)
                meant = f" (did you mean {near[0]}?)" if near else ""
                return (
                    f"--{name}: there is no such key{meant}; the keys of {where} are "
                    f"{', '.join(found) or 'none yet'}"
                )
            found = found[part]
            path.append(part)
    return None


def _file_alone(argv: list[str]) -> flags.FlagValues:
    """The flag --config as it was given, without overrides."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=[])
    values(argv, known_only=True)
    return values


def _without_traceback(call: Callable[[], int]) -> int:
    try:
        return call()
    except InputError as e:
        return _fail(str(e))
    except KeyboardInterrupt:
        return 130


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
