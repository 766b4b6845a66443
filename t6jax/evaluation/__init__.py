"""How good a model is: validation loss, next to entropies of simple models of the same text."""
