"""What a block computes between its matrix products, in one pass over memory each."""
