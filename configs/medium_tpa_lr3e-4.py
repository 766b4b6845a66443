"""The ablation of the learning rate, medium T6 (section J.3): 3e-4 down to 6e-5, the pair that
section J.1 prints.
"""

from configs import medium_tpa


def get_config():
    config = medium_tpa.get_config()
    config.optimizer.update(learning_rate=3e-4, min_learning_rate=6e-5)
    return config
