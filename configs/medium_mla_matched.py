"""Multi-head latent attention, medium: 353 M parameters.

Table 10's heads, with the latents of its small model: with them, and not with Table 10's own for
this size, these heads match MHA's parameter count.
"""

from configs import common


def get_config():
    return common.paper("medium", "mla", num_heads=23, kv_rank=256, q_rank=512, rope_dim=32)
