"""Names of activations, for rematerialisation by name.

What is made of the tokens in a block carries one of these names
(jax.ad_checkpoint.checkpoint_name), so that a policy such as
jax.checkpoint_policies.save_only_these_names can say what the gradient keeps. A name is the
identity: it changes no compiled program.
"""

# Linear maps of a block's normed input: TPA's factor rows or factors, dense queries, keys and
# values before RoPE, MLA's latents.
PROJECTION = "projection"
# What attention reads, [B, T, H, D]: dense, after RoPE. Where devices split the sequence, keys and
# values are of all of it.
QUERY, KEY, VALUE = "query", "key", "value"
# Attention's output [B, T, H, E] and the log-sum-exps of its scores [B, H, T].
ATTENTION = "attention"
# SwiGLU's two maps [B, T, width].
GATE, UP = "gate", "up"
# The residual stream after an update is added to it, and its RMSNorm, [B, T, d_model].
RESIDUAL, NORMED = "residual", "normed"
