"""Multi-query attention, medium: 353 M parameters (Tables 9 and 10, section J.1)."""

from configs import common


def get_config():
    return common.paper("medium", "mqa", num_heads=31)
