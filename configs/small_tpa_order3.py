"""Third-order TPA, small (appendix E, Table 4): 124 M parameters.

The paper prints neither head count nor d_b and d_c; 39 heads keep MHA's parameter count.
"""

from configs import common


def get_config():
    return common.paper(
        "small", "tpa_order3", num_heads=39, rank_q=6, rank_k=2, rank_v=2, dim_b=8, dim_c=8
    )
