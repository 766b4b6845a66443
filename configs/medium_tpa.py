"""T6, medium: 353 M parameters (Tables 9 and 10, section J.1)."""

from configs import common


def get_config():
    return common.paper("medium", "tpa", num_heads=47, rank_q=6, rank_k=2, rank_v=2)
