"""A model over the devices of a mesh: what a device stores and uses, and what devices exchange.

The training step runs the model's code on every device at once (jax.shard_map), on that device's
rows, tokens, heads, SwiGLU columns and shard of the vocabulary. Outside of such a step nothing in
this package does anything.
"""
