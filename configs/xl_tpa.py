"""T6, XL: 1.55 B parameters (Tables 9 and 10, section J.1)."""

from configs import common


def get_config():
    return common.paper("xl", "tpa", num_heads=78, rank_q=6, rank_k=2, rank_v=2)
