"""Grouped-query attention with 2 KV heads, medium: 353 M parameters (Tables 9 and 10, section
J.1).
"""

from configs import common


def get_config():
    return common.paper("medium", "gqa", num_heads=30, num_kv_heads=2)
