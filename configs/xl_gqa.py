"""Grouped-query attention with 2 KV heads, XL: 1.55 B parameters (Tables 9 and 10, section J.1)."""

from configs import common


def get_config():
    return common.paper("xl", "gqa", num_heads=48, num_kv_heads=2)
