"""Checks of the Python interface's arguments. Each returns the value in its own type, or raises an
InputError that names the argument.
"""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from t6jax.errors import InputError
from t6jax.fields import Range

# of seeds: a key is made of 32 bits where JAX's 64-bit types are off
SEEDS = Range(low=0, high=2**32 - 1)
LONGEST = 60


def shown(value: Any) -> str:
    """The value as a sentence shows it: its type, and what it is where that is short."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({type(value).__name__})"


def integer(name: str, value: Any, limits: Range) -> int:
    """A whole number: Python's, NumPy's, or an array of one integer."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number not in limits:
        raise InputError(f"{name} must be an integer, {limits}; got {shown(value)}")
    return number


def number(name: str, value: Any, limits: Range | None = None) -> float:
    """A finite number: Python's, NumPy's, or an array of one."""
    wanted = f"{name} must be a finite number" + (f", {limits}" if limits else "")
    is_number = not isinstance(value, bool | str | bytes | complex | np.complexfloating)
    try:
        found = float(value) if is_number else math.nan
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found) or (limits is not None and found not in limits):
        raise InputError(f"{wanted}; got {shown(value)}")
    return found


def floats(name: str, value: Any) -> Any:
    """An array of floating-point numbers."""
    if not isinstance(value, jax.Array | np.ndarray):
        raise InputError(
            f"{name} must be an array of floating-point numbers; got {shown(value)}: make it one "
            "with jnp.asarray"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise InputError(
            f"{name} must be an array of floating-point numbers; got {shown(value)}: convert it "
            "with astype"
        )
    return value


def integers(name: str, value: Any, length: int) -> jax.Array:
    """An array [length] of int32 from an array or a list of integers, each of which int32 holds.

    An array of JAX stays where it is; only of wider types are the numbers looked at.
    """
    try:
        found = value if isinstance(value, jax.Array) else np.asarray(value)
        found = jnp.stack(value) if found.dtype == object else found  # a list with traced numbers
    except (TypeError, ValueError):
        raise InputError(
            f"{name} must be integers of shape [{length}], got {shown(value)}"
        ) from None
    if found.shape != (length,) or not jnp.issubdtype(found.dtype, jnp.integer):
        raise InputError(f"{name} must be integers of shape [{length}], got {shown(found)}")
    limits, own = jnp.iinfo(jnp.int32), jnp.iinfo(found.dtype)
    is_wider = own.min < limits.min or own.max > limits.max
    known = is_wider and found.size and not isinstance(found, Tracer)
    if known and not limits.min <= found.min() <= found.max() <= limits.max:
        raise InputError(f"{name} must be integers of 32 bits; got {shown(value)}")
    return jnp.asarray(found, jnp.int32)
