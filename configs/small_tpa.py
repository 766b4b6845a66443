"""T6, small: 124 M parameters (Tables 9 and 10, section J.1)."""

from configs import common


def get_config():
    return common.paper("small", "tpa", num_heads=34, rank_q=6, rank_k=2, rank_v=2)
