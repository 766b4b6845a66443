"""What all experiments share: the keys there are, and section J.1's values. Every other config
starts from this one.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from t6jax.attention import MECHANISMS

# Table 9, whose devices times micro-batch times accumulation_steps are always 480 sequences; XL in
# twice as many parts, which fit one GPU. Learning rates by section J.1, medium's by the published
# configs: for it J.1 prints 3e-4 down to 6e-5, which section J.3 calls the ablation.
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


def attention(name: str, *, num_heads: int, head_dim: int = 64, **settings: Any) -> ConfigDict:
    """A mechanism's name and all its keys: the settings given, its defaults for the others."""
    defaults = {
        f.name: f.default
        for f in dataclasses.fields(MECHANISMS[name])
        if f.default is not dataclasses.MISSING
    }
    return ConfigDict(
        {"name": name, "num_heads": num_heads, "head_dim": head_dim} | defaults | settings
    )


def paper(size: str, mechanism: str, **settings: Any) -> ConfigDict:
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


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,  # of the weights and of the order of the data
            "steps": 100_000,
            "batch_size": 480,  # sequences a step
            "accumulation_steps": 1,  # micro-batches that a step is taken in
            # steps in a row whose loss or gradient is not finite; such steps are not applied
            "stop_after_not_finite": 10,
            # first and last step to trace, as "20:24", into the run's directory, for XProf or
            # TensorBoard
            "profile": "",
            # t6jax.ModelConfig's keys; attention: the mechanism's name and its own keys
            "model": {
                "vocab_size": 50304,  # GPT-2's 50257, padded
                "num_layers": 12,
                "d_model": 768,
                "context_length": 1024,
                "attention": attention("tpa", num_heads=34, rank_q=6, rank_k=2, rank_v=2),
                "mlp_width": 0,  # 0: floor(8/3 d_model)
                "dtype": "bfloat16",
                "param_dtype": "float32",
                "rope_base": 10000.0,
                "rope_table_dtype": "float32",
                "remat": "none",  # none, dots, full
                # training compiles block after block in place of a loop: faster steps, longer
                # compilation
                "unroll": False,
            },
            "data": {
                "path": "data/fineweb-edu-100bt",  # a folder of token shards
                # with an empty path: text to prepare in the work directory, a file, a folder, or
                # "python"
                "source": "",
                # several of them: a name -> {"path" or "source": as above, "weight": its share of
                # the windows}, in place of both
                "mixture": {},
                # gpt2, bytes, or the path of a .tiktoken file or a tokenizer.json
                "tokenizer": "gpt2",
                "validation_fraction": 0.01,  # of a source's bytes, by file
                # windows drawn anywhere and independently, as in the published code
                "with_replacement": False,
                # attention stops at the borders of documents, and positions restart there
                "document_masking": False,
                "num_workers": 0,  # processes that read ahead; 0: threads
            },
            "optimizer": {
                "learning_rate": 6e-4,
                "min_learning_rate": 3e-5,
                "warmup_steps": 2000,
                "decay_steps": 100_000,
                "beta_1": 0.9,
                "beta_2": 0.95,
                "epsilon": 1e-8,
                "weight_decay": 0.1,
                "clip_norm": 1.0,
            },
            # Devices along each axis; one may be -1, for all that are left. data: rows of the
            # batch. fsdp: rows, and what is stored of the parameters. tensor: heads, the SwiGLU's
            # width, the vocabulary. sequence: tokens of each sequence.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1},
            # The mesh axes that each named axis of the parameters is split over: "", one, or
            # several as "fsdp,sequence". Over tensor, vocab, mlp, heads and kv_heads are split
            # while the model runs too; all else is gathered a layer at a time.
            "sharding": {
                "d_model": "fsdp",
                "vocab": "tensor",
                "mlp": "tensor",
                "heads": "tensor",
                "kv_heads": "tensor",
                "head_dim": "",
                "rank": "",
                "latent": "",
            },
            "checkpoint": {"every_steps": 1000, "keep": 3},
            "validation": {"every_steps": 1000, "batches": 100, "batch_size": 48},
            "log": {"every_steps": 10, "tensorboard": True},
        }
    )
    return config.lock()
