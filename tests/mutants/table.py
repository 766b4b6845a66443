"""The faults that `make mutants` puts into the code one by one: what an engineer might get wrong.

A room's faults are in the file of its name in this folder, as FAULTS.
"""

import importlib
import pathlib
from typing import NamedTuple

ROOMS = (
    "attention",
    "config",
    "data",
    "evaluation",
    "generation",
    "interop",
    "kernels",
    "model",
    "ops",
    "training",
)


class Faults(NamedTuple):
    """Faults of one file.

    Attributes:
      file: the file, from the project's root.
      tests: the tests that ought to notice, as pytest takes them; the narrowest that do.
      changes: (the text that stands exactly once in the file, what is put in its place), and where
        others ought to notice one, those tests too.
    """

    file: str
    tests: tuple[str, ...]
    changes: tuple[tuple[str, str] | tuple[str, str, tuple[str, ...]], ...]


class Mutant(NamedTuple):
    """One fault: `old` in the file becomes `new`, and one of the tests fails."""

    room: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.old.strip()!r} -> {self.new.strip()!r}"

    def applied(self, root: pathlib.Path) -> str:
        """The file's text with the fault.

        Raises:
          ValueError: the old text does not stand exactly once in the file.
        """
        text = (root / self.file).read_text()
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self}: the old text stands {found} times in the file")
        return text.replace(self.old, self.new)


def mutants(room: str | None = None) -> list[Mutant]:
    """The faults of a room, or of all."""
    found = []
    for name in ROOMS if room is None else (room,):
        for faults in importlib.import_module(f"tests.mutants.{name}").FAULTS:
            for old, new, *others in faults.changes:
                tests = others[0] if others else faults.tests
                found.append(Mutant(name, faults.file, old, new, tests))
    return found
