"""A run of seconds, for tests that start training as a user does."""

from configs import common


def get_config():
    config = common.get_config()
    config.update(steps=240, batch_size=4)
    config.model.update(
        vocab_size=257, num_layers=2, d_model=16, context_length=16, dtype="float32"
    )
    config.model.attention.update(num_heads=3, head_dim=4)
    config.data.update(path="", source="t6jax", tokenizer="bytes", validation_fraction=0.2)
    config.optimizer.update(
        learning_rate=1e-2, min_learning_rate=1e-3, warmup_steps=10, decay_steps=240
    )
    config.checkpoint.update(every_steps=10, keep=3)
    config.validation.update(every_steps=60, batches=2, batch_size=4)
    config.log.update(every_steps=1, tensorboard=False)
    return config
