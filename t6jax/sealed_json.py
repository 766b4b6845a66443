"""JSON files that hold a checksum of themselves: a changed digit is no other number."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from t6jax.errors import InputError
from t6jax.files import json_object, read_regular, write_atomically

CHECKSUM = "checksum"  # the key: SHA-256 of the other keys' values


def write_sealed(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object with its checksum, atomically."""
    sealed = {**values, CHECKSUM: _checksum(values)}
    write_atomically(path, json.dumps(sealed, indent=2) + "\n")


def read_sealed(path: pathlib.Path, remedy: str, *, required: bool = True) -> dict[str, Any]:
    """The JSON object in a file, without its checksum.

    Args:
        path: the file.
        remedy: what to do if it is damaged.
        required: whether it must have a checksum.

    Raises:
        InputError: the file cannot be read, is no JSON object, or is not as it was written.
    """
    data = read_regular(path)
    try:
        return unsealed(data, required=required)
    except ValueError as e:
        raise InputError(f"{path} {e}: {remedy}") from e


def unsealed(data: bytes, *, required: bool = True) -> dict[str, Any]:
    """The JSON object that a file's bytes hold, as `read_sealed` gives it.

    Raises:
        ValueError: they are no JSON object, or not as they were written; it says which.
    """
    values = json_object(data)
    checksum = values.pop(CHECKSUM, None)
    if checksum is None and not required:
        return values
    if checksum != _checksum(values):
        raise ValueError("is damaged, its checksum does not match")
    return values


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
