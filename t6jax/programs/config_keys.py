"""The keys of a run's config, for --help, from the dataclasses that define them."""

import dataclasses
from collections.abc import Callable, Iterator

from t6jax.config import MixtureEntry, RunConfig
from t6jax.fields import Key, Section, keys_of


def listing(entry: Callable[[str, str], list[str]]) -> Iterator[str]:
    """Lines with every key, its default and its meaning. entry: (name, text) -> lines."""
    from t6jax.attention import MECHANISMS, AttentionConfig

    yield "keys of the config, set in its file or by --config.KEY=VALUE, with their defaults:"
    yield from _section(RunConfig, "", entry)
    yield ""
    yield "keys of a source in data.mixture.NAME:"
    yield from _section(MixtureEntry, "data.mixture.NAME.", entry)
    yield ""
    yield "keys of model.attention:"
    names = f"One of {', '.join(MECHANISMS)}, or one that is registered."
    yield from entry("model.attention.name", names)
    module = "A module that Python can import, which registers a mechanism of your own."
    yield from entry("model.attention.module", module)
    yield from _section(AttentionConfig, "model.attention.", entry)
    shared = keys_of(AttentionConfig)
    shown: dict[tuple[Key, ...], list[str]] = {}
    for name, mechanism in MECHANISMS.items():
        own = tuple(key for k, key in keys_of(mechanism).items() if k not in shared)
        if own:
            shown.setdefault(own, []).append(name)
    for keys, names in shown.items():
        yield f"  with {', '.join(names)}:"
        for key in keys:
            yield from entry(f"model.attention.{key.name}{_default(key)}", _meaning(key))


def _section(section: type, prefix: str, entry: Callable[[str, str], list[str]]) -> Iterator[str]:
    for key in keys_of(section).values():
        name = prefix + key.name
        if isinstance(key.type, type) and issubclass(key.type, Section):
            yield from _section(key.type, f"{name}.", entry)
        elif name not in ("model.attention", "data.mixture"):
            yield from entry(f"{name}{_default(key)}", _meaning(key))


def _default(key: Key) -> str:
    if key.default is dataclasses.MISSING:
        return " (required)"
    return f" ({key.default!r})" if isinstance(key.default, str) else f" ({key.default})"


def _meaning(key: Key) -> str:
    limits = "; ".join(str(limit) for limit in key.limits)
    return f"{key.doc} [{limits}]" if limits else key.doc
