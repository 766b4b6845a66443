"""How good a model is: validation loss beside the entropies of simple models of the same text."""
