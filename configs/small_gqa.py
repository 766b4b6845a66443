"""Grouped-query attention with 2 KV heads, small: 124 M parameters (Tables 9 and 10, section
J.1).
"""

from configs import common


def get_config():
    return common.paper("small", "gqa", num_heads=22, num_kv_heads=2)
