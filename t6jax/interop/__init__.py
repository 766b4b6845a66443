"""Published PyTorch checkpoints in."""
