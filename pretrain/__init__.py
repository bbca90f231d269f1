"""Training: the loop, its data, its engines and its checkpoints."""
