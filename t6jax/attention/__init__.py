"""Attention mechanisms, one file each, all behind the interface of `base`; here they are registered
by name.
"""

from t6jax.attention.base import Attention, AttentionConfig, Cache
from t6jax.attention.gqa import GQAConfig
from t6jax.attention.mfa import MFAConfig
from t6jax.attention.mha import MHAConfig
from t6jax.attention.mla import MLAConfig
from t6jax.attention.mqa import MQAConfig
from t6jax.attention.tpa import TPAConfig
from t6jax.attention.tpa_kvonly import TPAKVOnlyConfig
from t6jax.attention.tpa_nonctx_a import TPANonContextualAConfig
from t6jax.attention.tpa_nonctx_b import TPANonContextualBConfig
from t6jax.attention.tpa_order3 import TPAOrder3Config

MECHANISMS: dict[str, type[AttentionConfig]] = {
    config.name: config
    for config in (
        TPAConfig,
        TPAKVOnlyConfig,
        TPANonContextualAConfig,
        TPANonContextualBConfig,
        TPAOrder3Config,
        MHAConfig,
        GQAConfig,
        MQAConfig,
        MLAConfig,
        MFAConfig,
    )
}

__all__ = [
    "MECHANISMS",
    "Attention",
    "AttentionConfig",
    "Cache",
    *(config.__name__ for config in MECHANISMS.values()),
]
