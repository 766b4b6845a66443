"""Attention of new tokens over caches."""

from t6jax.ops.decode.api import decode
from t6jax.ops.decode.dense import decode_dense

__all__ = ["decode", "decode_dense"]
