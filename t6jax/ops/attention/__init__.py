"""Attention over whole sequences, for training and prefill."""

from t6jax.ops.attention.api import causal_attention
from t6jax.ops.attention.segments import Segments

__all__ = ["Segments", "causal_attention"]
