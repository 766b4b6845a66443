"""Names of activations, for rematerialisation by name.

What is made of the tokens in a block carries one of these names
(jax.ad_checkpoint.checkpoint_name), so that a policy such as
jax.checkpoint_policies.save_only_these_names can say what the gradient keeps. A name is the
identity: it changes no compiled program.
"""

# Linear maps of a block's normed input: TPA's factor rows or factors, dense queries, keys and
# values before RoPE, MLA's latents.
PROJECTION = "projection"
# MLA's keys without RoPE and its values [B, T, H, D], from the latents of all tokens: where devices
# split the sequence, those of all of it.
KEY_VALUE_PROJECTION = "key_value_projection"
# What the devices that split a sequence send each other of their tokens, in the sequence's order.
GATHERED_SEQUENCE = "gathered_sequence"
# What attention reads, [B, T, H, D]: dense, after RoPE. Where devices split the sequence, keys and
# values are of all of it.
QUERY, KEY, VALUE = "query", "key", "value"
# Attention's output [B, T, H, E] and the log-sum-exps of its scores [B, H, T].
ATTENTION = "attention"
# The scores of attention in plain XLA, before the mask and softmax, [B, G, H / G, T, S].
SCORES = "scores"
# The heads times W^O, summed over devices, [B, T, d_model].
ATTENTION_OUTPUT = "attention_output"
# SwiGLU's two maps and its gated product, [B, T, width].
GATE, UP, GATED = "gate", "up", "gated"
# The residual stream after an update is added to it, and its RMSNorm, [B, T, d_model].
RESIDUAL, NORMED = "residual", "normed"
