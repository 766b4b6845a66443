"""Attention mechanisms, one file each, all behind the interface of `base`; here they are registered by name."""

from t6jax.attention.base import Attention, AttentionConfig, Cache
from t6jax.attention.tpa import TPA, TPAConfig

MECHANISMS: dict[str, type[AttentionConfig]] = {config.name: config for config in (TPAConfig,)}

__all__ = ["MECHANISMS", "TPA", "Attention", "AttentionConfig", "Cache", "TPAConfig"]
