"""Multi-head latent attention, XL (Tables 9 and 10, section J.1).

The latents of Table 10 give it more parameters than MHA has; xl_mla_matched.py has latents that
match.
"""

from configs import common


def get_config():
    return common.paper("xl", "mla", num_heads=49, kv_rank=512, q_rank=1024, rope_dim=32)
