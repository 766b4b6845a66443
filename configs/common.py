"""What all experiments share: the keys there are, and section J.1's values. Every other config starts from this one."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,  # of the weights and of the order of the data
            "steps": 100_000,
            "batch_size": 480,  # sequences a step
            "accumulation_steps": 1,  # micro-batches that a step is taken in
            # t6jax.ModelConfig's keys; attention: the mechanism's name and its own keys
            "model": {
                "vocab_size": 50304,  # GPT-2's 50257, padded
                "num_layers": 12,
                "d_model": 768,
                "context_length": 1024,
                "attention": {
                    "name": "tpa",
                    "num_heads": 34,
                    "head_dim": 64,
                    "head_norm": False,
                    "rank_q": 6,
                    "rank_k": 2,
                    "rank_v": 2,
                    "init": "xavier",
                },
                "mlp_width": 0,  # 0: floor(8/3 d_model)
                "dtype": "bfloat16",
                "param_dtype": "float32",
                "rope_base": 10000.0,
                "rope_table_dtype": "float32",
                "remat": "none",  # none, dots, full
            },
            "data": {
                "path": "data/fineweb-edu-100bt",  # a folder of token shards
                "source": "",  # with an empty path: text to prepare in the work directory, a file, a folder, or "python"
                # several of them: a name -> {"path" or "source": as above, "weight": its share of the windows}, in place of both
                "mixture": {},
                "tokenizer": "gpt2",  # gpt2, bytes, or the path of a .tiktoken file or a tokenizer.json
                "validation_fraction": 0.01,  # of a source's bytes, by file
                "with_replacement": False,  # windows drawn anywhere and independently, as in the published code
                "document_masking": False,  # attention stops at the borders of documents, and positions restart there
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
            # devices along each axis; one may be -1, for all that are left
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            # the mesh axis that each named axis of the parameters is split over; "": none
            "sharding": {
                "d_model": "fsdp",
                "vocab": "tensor",
                "mlp": "tensor",
                "heads": "tensor",
                "head_dim": "",
                "rank": "",
            },
            "checkpoint": {"every_steps": 1000, "keep": 3},
            "validation": {"every_steps": 1000, "batches": 100, "batch_size": 48},
            "log": {"every_steps": 10, "tensorboard": True},
        }
    )
    return config.lock()
