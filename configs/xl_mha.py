"""Multi-head attention, XL: 1.55 B parameters (Tables 9 and 10, section J.1)."""

from configs import common


def get_config():
    return common.paper("xl", "mha", num_heads=25)
