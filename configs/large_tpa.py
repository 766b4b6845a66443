"""T6, large: 772 M parameters (Tables 9 and 10, section J.1)."""

from configs import common


def get_config():
    return common.paper("large", "tpa", num_heads=61, rank_q=6, rank_k=2, rank_v=2)
