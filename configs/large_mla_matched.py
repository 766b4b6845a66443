"""Multi-head latent attention, large: 772 M parameters.

Table 10's heads, with the latents of its small model: with them, and not with Table 10's own for
this size, these heads match MHA's parameter count.
"""

from configs import common


def get_config():
    return common.paper("large", "mla", num_heads=34, kv_rank=256, q_rank=512, rope_dim=32)
