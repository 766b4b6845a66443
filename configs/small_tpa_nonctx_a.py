"""The ablation of non-contextual A, small (Tables 5 and 6): 124 M parameters.

The paper prints no head count for it; 38 keep MHA's parameter count.
"""

from configs import common


def get_config():
    return common.paper("small", "tpa_nonctx_a", num_heads=38, rank_q=6, rank_k=2, rank_v=2)
