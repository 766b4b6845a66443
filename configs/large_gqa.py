"""Grouped-query attention with 2 KV heads, large: 772 M parameters (Tables 9 and 10, section
J.1).
"""

from configs import common


def get_config():
    return common.paper("large", "gqa", num_heads=38, num_kv_heads=2)
