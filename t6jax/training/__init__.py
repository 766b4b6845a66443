"""Training: step, optimizer, loop, checkpoints, metrics, and what --dry_run reports."""
