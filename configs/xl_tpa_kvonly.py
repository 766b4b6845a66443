"""T6 with dense queries (TPA-KVonly), XL: 1.55 B parameters (Tables 9 and 10, section J.1)."""

from configs import common


def get_config():
    return common.paper("xl", "tpa_kvonly", num_heads=47, rank_k=2, rank_v=2)
