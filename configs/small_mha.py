"""Multi-head attention, small: 124 M parameters (Tables 9 and 10, section J.1)."""

from configs import common


def get_config():
    return common.paper("small", "mha", num_heads=12)
