"""T6 with dense queries (TPA-KVonly), large: 772 M parameters (Tables 9 and 10, section J.1)."""

from configs import common


def get_config():
    return common.paper("large", "tpa_kvonly", num_heads=37, rank_k=2, rank_v=2)
