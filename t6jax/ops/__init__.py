"""Pure functions on arrays: the mathematics of each mechanism in plain JAX, and the choice of
implementation.
"""
