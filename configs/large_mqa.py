"""Multi-query attention, large: 772 M parameters (Tables 9 and 10, section J.1)."""

from configs import common


def get_config():
    return common.paper("large", "mqa", num_heads=39)
