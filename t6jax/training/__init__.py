"""Training: step, optimizer, loop, checkpoints, metrics, mesh and sharding rules."""
