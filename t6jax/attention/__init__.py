"""Attention mechanisms, one file each, all with the interface of `base`.

They are registered here by name; `register` adds one of your own.
"""

import dataclasses

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
from t6jax.errors import InputError

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


def register[C: type](config: C) -> C:
    """Registers a mechanism under its name, so that configs can name it; usable as a decorator.

    A run of it names the module that `config` is defined in, in config.json at
    model.attention.module. t6jax.load and the programs import that module, so it must be importable
    wherever they run.

    Args:
        config: a frozen dataclass derived from AttentionConfig, with `name`, the nnx module that
            it builds as `module`, and its keys as fields.

    Returns:
        config.

    Raises:
        InputError: config is no such class, or its name is another mechanism's.
    """
    if not (isinstance(config, type) and issubclass(config, AttentionConfig)):
        raise InputError(f"register takes a subclass of t6jax.AttentionConfig; got {config!r}")
    name = getattr(config, "name", None)
    if not isinstance(name, str) or not dataclasses.is_dataclass(config):
        raise InputError(
            f"register: {config.__qualname__} must be a dataclass with the class variable `name`"
        )
    known = MECHANISMS.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (
        config.__module__,
        config.__qualname__,
    ):
        raise InputError(
            f"register: the name {name!r} is {known.__module__}.{known.__qualname__}'s: give "
            f"{config.__qualname__} another"
        )
    MECHANISMS[name] = config
    return config  # pyright: ignore[reportReturnType] # narrowed by the checks above


__all__ = [
    "MECHANISMS",
    "Attention",
    "AttentionConfig",
    "Cache",
    "register",
    *(config.__name__ for config in MECHANISMS.values()),
]
