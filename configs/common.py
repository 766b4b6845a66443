"""What all experiments share: section J.1's values, which are the defaults of t6jax.config. Every
other config starts from this one.
"""

from typing import Any

from ml_collections import ConfigDict

from t6jax.config import RunConfig
from t6jax.config.model import attention_from_dict, attention_to_dict

Config = Any  # a ConfigDict, whose attributes have no types

# Table 9, where devices x micro-batch x accumulation_steps is always 480 sequences. XL takes twice
# as many micro-batches, so that it fits one GPU. Learning rates are section J.1's, medium's those
# of the published configs: J.1 prints 3e-4 to 6e-5 for it, which section J.3 calls the ablation.
SIZES = {
    "small": {
        "layers": 12,
        "d_model": 768,
        "accumulation_steps": 5,
        "remat": "none",
        "learning_rates": (6e-4, 3e-5),
    },
    "medium": {
        "layers": 24,
        "d_model": 1024,
        "accumulation_steps": 3,
        "remat": "none",
        "learning_rates": (6e-4, 3e-5),
    },
    "large": {
        "layers": 36,
        "d_model": 1280,
        "accumulation_steps": 4,
        "remat": "none",
        "learning_rates": (2e-4, 1e-5),
    },
    "xl": {
        "layers": 48,
        "d_model": 1600,
        "accumulation_steps": 20,
        "remat": "dots",
        "learning_rates": (1e-4, 1e-5),
    },
}


def attention(name: str, *, num_heads: int, head_dim: int = 64, **settings: Any) -> Config:
    """A mechanism's name and all its keys: the settings given, its defaults for the others."""
    given = {"name": name, "num_heads": num_heads, "head_dim": head_dim} | settings
    return ConfigDict(attention_to_dict(attention_from_dict(given)))


def paper(size: str, mechanism: str, **settings: Any) -> Config:
    """The paper's run of a size of Table 9 with a mechanism's settings of Table 10."""
    of_size = SIZES[size]
    config = get_config()
    config.accumulation_steps = of_size["accumulation_steps"]
    config.model.update(
        num_layers=of_size["layers"],
        d_model=of_size["d_model"],
        remat=of_size["remat"],
        unroll=True,
    )
    config.model.attention = attention(mechanism, **settings)
    config.optimizer.learning_rate, config.optimizer.min_learning_rate = of_size["learning_rates"]
    return config


def get_config() -> Config:
    """Every key with its default, T6 small's model among them. `python train.py --help` lists what
    the keys mean; the dataclasses of t6jax.config define them.
    """
    model = {
        "vocab_size": 50304,  # GPT-2's 50257, padded
        "num_layers": 12,
        "d_model": 768,
        "context_length": 1024,
        "attention": attention("tpa", num_heads=34, rank_q=6, rank_k=2, rank_v=2).to_dict(),
    }
    return ConfigDict(RunConfig.from_dict({"model": model}).to_dict()).lock()
