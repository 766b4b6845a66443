"""Multi-head latent attention, large (Tables 9 and 10, section J.1).

The latents of Table 10 give it more parameters than MHA has; large_mla_matched.py has latents that
match.
"""

from configs import common


def get_config():
    return common.paper("large", "mla", num_heads=34, kv_rank=512, q_rank=1024, rope_dim=32)
