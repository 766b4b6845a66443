"""A run's config from a file and --config.KEY=VALUE flags."""

import pathlib
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from t6jax.config import MixtureEntry, RunConfig
from t6jax.config.model import mechanism
from t6jax.errors import InputError
from t6jax.fields import Key, Section, keys_of, nearest

# (dotted key, value as text)
Overrides = Sequence[tuple[str, str]]

ATTENTION, MIXTURE = "model.attention.", "data.mixture."
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """(argv without them, the overrides) of --config.KEY=VALUE, --config.KEY VALUE, and of
    --config.KEY and --noconfig.KEY for keys that are True or False.
    """
    rest, overrides = [], []
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        name, given, value = argument.partition("=")
        flag = name.lstrip("-")
        if not argument.startswith("-") or not flag.startswith(("config.", "noconfig.")):
            rest.append(argument)
            continue
        if flag.startswith("no"):
            value = "false"
        elif not given:
            has_value = arguments and not arguments[0].startswith("--")
            value = arguments.pop(0) if has_value else "true"
        overrides.append((flag.split(".", 1)[1], value))
    return rest, overrides


def check_overrides(overrides: Overrides) -> None:
    """Raises InputError for a key that no config has, and a value that it cannot have.

    This does not import JAX: most typing errors are named at once. Keys of the mechanism are
    checked by load_config.
    """
    for path, text in overrides:
        if not path.startswith((ATTENTION, MIXTURE)):
            key = _find(path)
            key.check(_parse(text, key, path), path)


def load_config(name: str, overrides: Overrides) -> RunConfig:
    """The config of a file, with overrides.

    Args:
        name: the file, which defines get_config(); FILE:TEXT calls get_config(TEXT).

    Raises:
        InputError: there is no such file, or its config is refused.
    """
    values = _values_of(name)
    overrides = list(overrides)
    _name_mechanism(values, overrides)
    for path, text in overrides:
        key = _find(path, values)
        _set(values, path, _parse(text, key, path))
    return RunConfig.from_dict(values)


def require_config_file(name: str) -> str:
    """The path in FILE or FILE:TEXT. Raises InputError if there is no such file."""
    path = name.partition(":")[0]
    if not pathlib.Path(path).is_file():
        raise InputError(f"--config={path}: there is no such config file")
    return path


def _values_of(name: str) -> dict[str, Any]:
    path, (_, _, argument) = require_config_file(name), name.partition(":")
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise InputError(f"--config={path} defines no get_config()")
        config = get_config(argument) if argument else get_config()
    except (AttributeError, KeyError, TypeError, ImportError) as e:
        # what ConfigDict raises for a wrong key or type, and Python for a wrong name
        frames = traceback.extract_tb(sys.exc_info()[2])
        line = next((f.lineno for f in reversed(frames) if f.filename == path), None)
        where = path if line is None else f"{path}, line {line}"
        text = str(e.args[0] if e.args and isinstance(e, KeyError) else e).replace("\\n", " ")
        raise InputError(f"{where}: {' '.join(text.split())}") from e
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        raise InputError(f"--config={path}: get_config() must return a config; got {config!r}")
    return dict(config)


def _name_mechanism(values: dict[str, Any], overrides: list[tuple[str, str]]) -> None:
    """Rebuilds the attention section for the mechanism that an override names: keys that it shares
    with the file's mechanism stay, the others have their defaults.
    """
    attention = dict(_at(values, "model.attention"))
    for key in ("module", "name"):
        given = [text for path, text in overrides if path == ATTENTION + key]
        if given:
            attention[key] = given[-1]
            overrides[:] = [(p, t) for p, t in overrides if p != ATTENTION + key]
    kept = ("name", "module", *keys_of(mechanism(attention)))
    _set(values, "model.attention", {k: v for k, v in attention.items() if k in kept})


def _find(path: str, values: Mapping[str, Any] | None = None) -> Key:
    """The key at a dotted path. values: a config, for the keys of its mechanism and mixture."""
    if values is not None and path.startswith(ATTENTION):
        keys, rest = keys_of(mechanism(_at(values, "model.attention"))), path[len(ATTENTION) :]
        return _in(keys, rest, path, "model.attention")
    if values is not None and path.startswith(MIXTURE):
        _, _, rest = path[len(MIXTURE) :].partition(".")
        return _in(keys_of(MixtureEntry), rest, path, path[: -len(rest) - 1])
    section: type = RunConfig
    parts = path.split(".")
    for i, part in enumerate(parts):
        where = ".".join(parts[:i])
        key = _in(keys_of(section), part, path, where)
        if not (isinstance(key.type, type) and issubclass(key.type, Section)):
            break
        section = key.type
    else:
        raise InputError(f"--config.{path}: {path} is a section, {_keys(section)}")
    if i + 1 < len(parts):
        raise InputError(
            f"--config.{path}: there is no such key; {'.'.join(parts[: i + 1])} is a value, with "
            "no keys below it"
        )
    return key


def _in(keys: Mapping[str, Key], name: str, path: str, where: str) -> Key:
    if name not in keys:
        raise InputError(f"--config.{path}: there is no such key{nearest(name, keys, where)}")
    return keys[name]


def _keys(section: type) -> str:
    return f"with the keys {', '.join(keys_of(section))}"


def _parse(text: str, key: Key, path: str) -> Any:
    """The value that a flag's text stands for."""
    try:
        if key.type is bool:
            if text.lower() not in (*_TRUE, *_FALSE):
                raise ValueError
            return text.lower() in _TRUE
        if key.type in (int, float, str):
            return key.type(text)
    except ValueError:
        named = {bool: "True or False", int: "an integer", float: "a number"}[key.type]
        raise InputError(f"--config.{path}={text} must be {named}") from None
    raise InputError(
        f"--config.{path}: set it in a config file, or one of its keys by --config.{path}.KEY=VALUE"
    )


def _at(values: Mapping[str, Any], path: str) -> Any:
    for part in path.split("."):
        values = values.get(part, {})
    return values


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *sections, last = path.split(".")
    for part in sections:
        values[part] = dict(values.get(part, {}))
        values = values[part]
    values[last] = value
