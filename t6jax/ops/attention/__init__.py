"""Attention over whole sequences, for training and prefill."""

from t6jax.ops.attention.api import Segments, causal_attention, keep_attention, seen_segments

__all__ = ["Segments", "causal_attention", "keep_attention", "seen_segments"]
