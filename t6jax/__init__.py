"""Tensor Product Attention and the T6 transformer in JAX. These are the public names."""

import importlib
from typing import Any

# name -> where it lives. Each is imported when it is first used: processes that only handle data
# never load JAX.
_HOMES = {
    "AttentionConfig": "attention",
    "register": "attention",
    "__version__": "_version",
    "ModelConfig": "config",
    "InputError": "errors",
    "generate": "generation",
    "from_reference": "interop.reference",
    "T6": "model",
    "decode": "ops.decode",
    "TPACache": "ops.tpa_cache",
    "TPAQuery": "ops.tpa_cache",
    "load": "loading",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 't6jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"t6jax.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
