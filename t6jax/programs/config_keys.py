"""The keys of a run's config, for --help, from the dataclasses that define them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from t6jax.config import MixtureEntry, RunConfig
from t6jax.fields import Key, Section, keys_of

Entry = Callable[[str, str], list[str]]


def listing(entry: Entry, config: RunConfig | None = None) -> Iterator[str]:
    """Lines with every key, its value and its meaning.

    Args:
        entry: (name, text) -> lines.
        config: whose values are shown; None: the defaults.
    """
    from t6jax.attention import MECHANISMS, AttentionConfig

    values = _flat(config.to_dict()) if config else {}
    shown = "values in this config" if config else "defaults"
    yield f"keys of the config, set in its file or by --config.KEY=VALUE, with their {shown}:"
    for name, key in _keys(RunConfig):
        yield from entry(_named(name, key, values), _meaning(key))
    for name, key in _keys(MixtureEntry, "data.mixture.NAME."):
        yield from entry(_named(name, key, {}), f"Of a source of the mixture: {_meaning(key)}")
    attention = "model.attention."
    names = Key("name", str, dataclasses.MISSING, (), f"One of {', '.join(MECHANISMS)}.")
    yield from entry(_named(attention + "name", names, values), _meaning(names))
    module = "For a mechanism of your own: the module that registers it, which Python can import."
    yield from entry(attention + "module", module)
    for name, key in _keys(AttentionConfig, attention):
        yield from entry(_named(name, key, values), _meaning(key))
    having: dict[Key, list[str]] = {}
    for mechanism in MECHANISMS.values():
        for name, key in keys_of(mechanism).items():
            if name not in keys_of(AttentionConfig):
                having.setdefault(key, []).append(mechanism.name)
    for key, mechanisms in having.items():
        text = f"Of {', '.join(mechanisms)}: {_meaning(key)}"
        yield from entry(_named(attention + key.name, key, values), text)


def _keys(section: type, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """(dotted name, key) of a section and those in it; the mechanism and the mixture apart."""
    for key in keys_of(section).values():
        name = prefix + key.name
        if isinstance(key.type, type) and issubclass(key.type, Section):
            yield from _keys(key.type, f"{name}.")
        elif name not in ("model.attention", "data.mixture"):
            yield name, key


def _named(name: str, key: Key, values: Mapping[str, Any]) -> str:
    value = values.get(name, key.default)
    return name if value is dataclasses.MISSING else f"{name} ({value!r})"


def _meaning(key: Key) -> str:
    limits = "; ".join(str(limit) for limit in key.limits)
    return f"{key.doc} [{limits}]" if limits else key.doc


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {}
        flat |= inner or {prefix + key: value}
    return flat
