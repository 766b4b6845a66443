"""Tensor Product Attention and the T6 transformer in JAX. These are the public names."""

import importlib
from typing import Any

# name -> the module that defines it. Each is imported when it is first used: processes that only
# handle data never load JAX.
_MODULES = {
    "AttentionConfig": "attention",
    "register": "attention",
    "__version__": "_version",
    "ModelConfig": "config",
    "InputError": "errors",
    "Sampling": "generation",
    "generate": "generation",
    "stream": "generation",
    "from_reference": "interop.reference",
    "T6": "model",
    "decode": "ops.decode",
    "FixedFactors": "ops.tpa_factors",
    "TPACache": "ops.tpa_cache",
    "TPAEntry": "ops.tpa_factors",
    "TPAQuery": "ops.tpa_factors",
    "load": "loading",
    "load_tokenizer": "generation",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 't6jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"t6jax.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
