"""T6 XL, 1.55 B parameters (Tables 9 and 10, section J.1)."""

from configs import common


def get_config():
    config = common.get_config()
    config.accumulation_steps = 20
    config.model.remat = "dots"
    config.model.num_layers = 48
    config.model.d_model = 1600
    config.model.attention.num_heads = 78
    config.optimizer.learning_rate = 1e-4
    config.optimizer.min_learning_rate = 1e-5
    return config
