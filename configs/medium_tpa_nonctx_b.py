"""The ablation of non-contextual B, medium (Tables 7 and 8): 353 M parameters.

The paper prints no head count for it; 55 keep MHA's parameter count.
"""

from configs import common


def get_config():
    return common.paper("medium", "tpa_nonctx_b", num_heads=55, rank_q=6, rank_k=2, rank_v=2)
