"""Queries, keys and values from their factors, and gradients back."""
