"""The ablation of non-contextual B, small (Tables 5 and 6): 124 M parameters.

The paper prints no head count for it; 42 keep MHA's parameter count.
"""

from configs import common


def get_config():
    return common.paper("small", "tpa_nonctx_b", num_heads=42, rank_q=6, rank_k=2, rank_v=2)
