"""The road from text to batches: documents -> tokens -> shards -> Grain."""
