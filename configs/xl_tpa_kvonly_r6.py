"""The ablation of key and value ranks, 6 (section J.2.2): 1.55 B parameters.

The paper prints no head count for it; 40 keep MHA's parameter count.
"""

from configs import common


def get_config():
    return common.paper("xl", "tpa_kvonly", num_heads=40, rank_k=6, rank_v=6)
