"""Tensor Product Attention and the T6 transformer in JAX. These are the public names."""

from t6jax.config import ModelConfig
from t6jax.errors import InputError
from t6jax.generation import generate
from t6jax.interop.reference import from_reference
from t6jax.model import T6
from t6jax.ops.decode import decode
from t6jax.ops.tpa_cache import TPACache, TPAQuery
from t6jax.runs import load

__all__ = ["T6", "InputError", "ModelConfig", "TPACache", "TPAQuery", "decode", "from_reference", "generate", "load"]
