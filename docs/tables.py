"""Writes the tables of docs/configs.md from the config's dataclasses.

python -m docs.tables
"""

import dataclasses
import pathlib
import re

from configs import common
from t6jax.attention import MECHANISMS
from t6jax.config import RunConfig
from t6jax.fields import Key, Section, keys_of

# those of the package: whoever registers one of their own does not change the page
PACKAGED = {n: m for n, m in MECHANISMS.items() if m.__module__.startswith("t6jax.")}
PAGE = pathlib.Path(__file__).parent / "configs.md"
TPA = {name for name in PACKAGED if name.startswith("tpa")}
TYPES = {bool: "`True` or `False`", str: "a string", int: "an integer"}
# how the page names sets of mechanisms
GROUPS = {
    "all": set(PACKAGED),
    "TPA": TPA,
    "TPA but `tpa_kvonly`": TPA - {"tpa_kvonly"},
}


def line(path: str, key: Key, default: object, *cells: str) -> str:
    """A row of a table: the key, its default, further cells, what it may be, what it means."""
    may_be = "; ".join(str(limit) for limit in key.limits) or TYPES.get(key.type, "a dict")
    return "| " + " | ".join([f"`{path}`", f"`{default!r}`", *cells, may_be, key.doc]) + " |"


def section_table(section: str) -> str:
    """The keys of a section, or of the run itself, that are not sections themselves."""
    run = keys_of(RunConfig)
    keys = run if section == "run" else keys_of(run[section].type)
    defaults = common.get_config().to_dict()
    defaults = defaults if section == "run" else defaults[section]
    prefix = "" if section == "run" else f"{section}."
    rows = [
        line(prefix + name, key, defaults[name])
        for name, key in keys.items()
        if name != "attention" and not is_section(key)
    ]
    return "\n".join(["| key | default | may be | meaning |", "|---|---|---|---|", *rows])


def is_section(key: Key) -> bool:
    """Whether a key holds further keys."""
    return isinstance(key.type, type) and issubclass(key.type, Section)


def attention_table() -> str:
    """The keys of all mechanisms, and which mechanism has which."""
    defaults = common.get_config().to_dict()["model"]["attention"]
    owners: dict[str, set[str]] = {}
    keys: dict[str, Key] = {}
    for name, mechanism in PACKAGED.items():
        for key in keys_of(mechanism).values():
            owners.setdefault(key.name, set()).add(name)
            keys.setdefault(key.name, key)
            if key.default is not dataclasses.MISSING:
                defaults.setdefault(key.name, key.default)
    names = ", ".join(f"`{name}`" for name in PACKAGED)
    rows = [f"| `model.attention.name` | `'tpa'` | all | {names} | The mechanism. |"]
    for name, key in keys.items():
        of = next((g for g, have in GROUPS.items() if have == owners[name]), None)
        of = of or ", ".join(f"`{owner}`" for owner in sorted(owners[name]))
        rows.append(line(f"model.attention.{name}", key, defaults[name], of))
    header = ["| key | default | mechanisms | may be | meaning |", "|---|---|---|---|---|"]
    return "\n".join(header + rows)


def with_tables(text: str) -> str:
    """The page with its tables as the dataclasses have them."""

    def written(match: re.Match) -> str:
        name = match[1]
        table = attention_table() if name == "model.attention" else section_table(name)
        return f"<!-- docs.tables: {name} -->\n{table}\n<!-- end -->"

    return re.sub(r"<!-- docs\.tables: ([\w.]+) -->\n.*?<!-- end -->", written, text, flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
