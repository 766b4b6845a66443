"""The flags of train.py, eval.py and generate.py: absl's, with configs and their overrides."""

import difflib
import os
import sys
from collections.abc import Callable

from t6jax.command_line import exit_status
from t6jax.errors import InputError
from t6jax.extras import needs

with needs("train"):
    import absl.logging
    from absl import app, flags
    from ml_collections import ConfigDict, config_flags


def run(main: Callable[[list[str]], int]) -> None:
    """Parses absl's flags, runs main(argv) and exits.

    An InputError, or a flag that does not parse, ends the program with one sentence.
    """
    # XLA's and Orbax's notes on their own workings; errors still show
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl.logging.set_verbosity(absl.logging.ERROR)
    app.run(
        lambda argv: exit_status(lambda: main(argv)),
        flags_parser=_parse_or_exit,
    )


def _parse_or_exit(argv: list[str]) -> list[str]:
    rest: list[str] = []
    if status := exit_status(lambda: rest.extend(_parse(argv))):
        sys.exit(status)
    return rest


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = app.parse_flags_with_usage(argv)
    except (
        AttributeError,
        KeyError,
        TypeError,
    ) as e:  # what ml_collections raises for a wrong key or type
        if unknown := _unknown_key(argv):
            raise InputError(unknown) from e
        text = str(e.args[0] if e.args else e).strip("'\"").replace("\\n", " ").replace("\\'", "'")
        raise InputError(f"in the config or its overrides: {' '.join(text.split())}") from e
    except BrokenPipeError:  # of standard output, under --help | head
        raise
    except OSError as e:  # of a missing file, where an override needs it
        name = config_flags.get_config_filename(_file_alone(argv)["config"])
        raise InputError(f"--config={name}: there is no such config file") from e
    if len(rest) > 1:
        raise InputError(f"{rest[1]!r} is not a flag; flags begin with -- (see --help)")
    return rest


def _unknown_key(argv: list[str]) -> str | None:
    """A sentence on the first --config.KEY that the config does not have; None if it has all."""
    try:
        values = _file_alone(argv)
    except (AttributeError, KeyError, TypeError):  # an error in the config file itself
        return None
    if not isinstance(values.config, ConfigDict):
        return None
    for argument in argv:
        name = argument.split("=")[0].lstrip("-")
        if not argument.startswith("-") or not name.startswith("config."):
            continue
        found, path = values.config, []
        for key in name.split(".")[1:]:
            where = ".".join(path) or "the config"
            if not isinstance(found, ConfigDict):
                return f"--{name}: there is no such key; {where} is a value, with no keys below it"
            if key not in found:
                near = difflib.get_close_matches(key, found, n=1)
                meant = f" (did you mean {near[0]}?)" if near else ""
                return (
                    f"--{name}: there is no such key{meant}; the keys of {where} are "
                    f"{', '.join(found) or 'none yet'}"
                )
            found = found[key]
            path.append(key)
    return None


def _file_alone(argv: list[str]) -> flags.FlagValues:
    """The flag --config as given, without overrides."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=[])
    values(argv, known_only=True)
    return values
