"""Packages that only an extra of t6jax installs, such as `pip install 't6jax[data]'`."""

import contextlib
from collections.abc import Iterator

from t6jax.errors import InputError


class MissingExtraError(InputError, ImportError):
    """A package of an extra is not installed; the message says which pip command installs it."""


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Wraps the imports of packages that `pip install 't6jax[EXTRA]'` brings.

    Raises:
        MissingExtraError: if one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as e:
        if e.name is None or e.name.split(".")[0] == "t6jax":
            raise
        raise MissingExtraError(
            f"the Python package {e.name.split('.')[0]} is not installed: "
            f"pip install 't6jax[{extra}]'"
        ) from e
