"""Checked dataclass fields. A config's key says in its annotation what it means and what it may be:

    learning_rate: Annotated[float, Range(low=0), "Peak of the schedule."] = 6e-4

The checks, the list of keys that --help prints, and the defaults are all read from there.
"""

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from t6jax.errors import InputError

# the smallest and the largest normal number of the type that training and RoPE compute in
_FLOAT32 = (1.1754943508222875e-38, 3.4028234663852886e38)
_TYPE_NAMES = {
    int: "an integer",
    float: "a finite number that float32 holds",
    bool: "True or False",
    str: "a string",
}


def _in_float32(value: float) -> bool:
    """Whether float32 holds a number: neither infinity nor, unless it is 0, 0."""
    return value == 0 or _FLOAT32[0] <= abs(value) <= _FLOAT32[1]


@dataclasses.dataclass(frozen=True)
class Range:
    """Limits of a number.

    Args:
        low, high: the smallest and the largest value.
        above, below: limits that the value must not reach.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        limits = (
            ("at least", self.low),
            ("above", self.above),
            ("at most", self.high),
            ("below", self.below),
        )
        return " and ".join(f"{name} {limit}" for name, limit in limits if limit is not None)


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The strings that a key may be."""

    choices: tuple[str, ...]

    def __contains__(self, value: str) -> bool:
        return value in self.choices

    def __str__(self) -> str:
        return f"one of {', '.join(self.choices)}"


@dataclasses.dataclass(frozen=True)
class Key:
    """One field: its name, type, default (dataclasses.MISSING if required), limits and meaning."""

    name: str
    type: Any
    default: Any
    limits: tuple[Range | OneOf, ...]
    doc: str

    def check(self, value: Any, path: str) -> Any:
        """The value, an integer for a float made one.

        Raises:
            InputError: the type is wrong or the value is outside the limits; the sentence names
                `path`.
        """
        if self.type in _TYPE_NAMES:
            wanted = (int, float) if self.type is float else self.type
            fits = isinstance(value, wanted) and (self.type is bool or not isinstance(value, bool))
            if not fits or (self.type is float and not _in_float32(value)):
                raise InputError(f"{path} must be {_TYPE_NAMES[self.type]}; got {value!r}")
            value = float(value) if self.type is float else value
        is_section = isinstance(self.type, type) and issubclass(self.type, Section)
        if is_section and not isinstance(value, self.type):
            raise InputError(f"{path} must be a {self.type.__name__}; got {value!r}")
        for limit in self.limits:
            if value not in limit:
                raise InputError(f"{path} must be {limit}; got {value!r}")
        return value


@functools.cache
def keys_of(cls: type) -> dict[str, Key]:
    """The fields of a dataclass by name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    keys = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        notes = hint.__metadata__ if typing.get_origin(hint) is typing.Annotated else ()
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        keys[field.name] = Key(
            field.name,
            hint.__origin__ if notes else hint,
            default,
            tuple(note for note in notes if isinstance(note, Range | OneOf)),
            " ".join(note for note in notes if isinstance(note, str)),
        )
    return keys


def check_fields(values: Any, path: str) -> None:
    """Checks every field of a dataclass instance; `path` is where it stands in the config."""
    for name, key in keys_of(type(values)).items():
        checked = key.check(getattr(values, name), joined(path, name))
        object.__setattr__(values, name, checked)


def build[T](cls: type[T], values: Any, path: str) -> T:
    """cls(**values). Raises InputError for keys that are unknown or missing."""
    keys = keys_of(cls)
    require_section(values, path, keys)
    for name in values:
        if name not in keys:
            raise InputError(f"{joined(path, name)} is unknown{nearest(name, keys, path)}")
    missing = [k.name for k in keys.values() if k.default is dataclasses.MISSING]
    missing = [name for name in missing if name not in values]
    if missing:
        raise InputError(f"{path or 'the config'} lacks {', '.join(missing)}")
    for name, value in values.items():
        keys[name].check(value, joined(path, name))
    return cls(**values)


def require_section(values: Any, path: str, keys: Iterable[str]) -> None:
    """Raises InputError unless values is a mapping."""
    if not isinstance(values, Mapping):
        raise InputError(
            f"{path or 'the config'} must be a section with the keys {', '.join(keys)}; "
            f"got {values!r}"
        )


def nearest(name: str, names: Iterable[str], where: str = "") -> str:
    """What follows "... is unknown": the nearest name, and all that `where` has."""
    names = list(names)
    near = difflib.get_close_matches(str(name), names, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    return f"{meant}; the keys of {where or 'the config'} are {', '.join(names) or 'none'}"


def joined(path: str, name: str) -> str:
    """The dotted name of a key."""
    return f"{path}.{name}" if path else name


class Section:
    """Base of the config's dataclasses: fields are checked when an instance is made."""

    section: ClassVar[str] = ""  # its dotted name in a run's config

    def __post_init__(self):
        check_fields(self, self.section)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """An instance from plain values, sections being dicts; keys that are left out have their
        defaults.

        Raises:
            InputError: a key is unknown, missing, of the wrong type or outside its limits.
        """
        require_section(values, cls.section, keys_of(cls))
        made = dict(values)
        for name, key in keys_of(cls).items():
            is_section = isinstance(key.type, type) and issubclass(key.type, Section)
            if is_section and name in made and not isinstance(made[name], key.type):
                made[name] = key.type.from_dict(made[name])
        return build(cls, made, cls.section)

    def to_dict(self) -> dict[str, Any]:
        """The inverse of from_dict: plain values, fit for JSON."""
        values = {name: getattr(self, name) for name in keys_of(type(self))}
        return {k: v.to_dict() if isinstance(v, Section) else v for k, v in values.items()}
