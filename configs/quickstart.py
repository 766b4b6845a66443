"""A small T6 on the text of the running Python: minutes on two CPU cores."""

from configs import common


def get_config():
    config = common.get_config()
    config.steps = 500
    config.batch_size = 16
    config.model.update(
        vocab_size=257, num_layers=4, d_model=128, context_length=128, dtype="float32"
    )
    config.model.attention.update(num_heads=8, head_dim=32, rank_q=6, rank_k=2, rank_v=2)
    config.data.update(path="", source="python", tokenizer="bytes", validation_fraction=0.01)
    config.optimizer.update(learning_rate=3e-3, min_learning_rate=3e-4, warmup_steps=50)
    config.checkpoint.update(every_steps=250, keep=2)
    config.validation.update(every_steps=250, batches=32, batch_size=64)
    config.log.every_steps = 20
    return config
