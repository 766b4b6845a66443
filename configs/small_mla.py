"""Multi-head latent attention, small: 124 M parameters (Tables 9 and 10, section J.1).

Table 10 prints 12 heads; the published config has 13, which match MHA's parameter count.
"""

from configs import common


def get_config():
    return common.paper("small", "mla", num_heads=13, kv_rank=256, q_rank=512, rope_dim=32)
