"""Causal attention over whole sequences, forward and backward."""
