"""T6, 7 B: 6.64 B parameters, the paper's recipe beyond its sizes. As many heads as give MHA's
parameter count.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.update(batch_size=1024, accumulation_steps=16)
    config.model.update(num_layers=32, d_model=4096, context_length=4096, remat="dots")
    config.model.attention = common.attention(
        "tpa", num_heads=109, head_dim=128, rank_q=6, rank_k=2, rank_v=2
    )
    config.optimizer.update(learning_rate=3e-4, min_learning_rate=3e-5)
    config.validation.update(batch_size=64)
    config.mesh.update(data=-1, fsdp=8)
    return config
