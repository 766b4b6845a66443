"""Tensor Product Attention and the T6 transformer in JAX. These are the public names."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t6jax.config import ModelConfig
    from t6jax.errors import InputError
    from t6jax.generation import generate
    from t6jax.model import T6
    from t6jax.ops.decode import decode
    from t6jax.ops.tpa_cache import TPACache, TPAQuery
    from t6jax.runs import load

__all__ = ["T6", "InputError", "ModelConfig", "TPACache", "TPAQuery", "decode", "generate", "load"]

# Each name is imported when it is first used: processes that only handle data (t6jax.data) never load JAX.
_HOMES = {
    "ModelConfig": "config",
    "InputError": "errors",
    "generate": "generation",
    "T6": "model",
    "decode": "ops.decode",
    "TPACache": "ops.tpa_cache",
    "TPAQuery": "ops.tpa_cache",
    "load": "runs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 't6jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"t6jax.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
