"""What lies between matrix products, in one pass over memory each."""
