"""Training: one readable loop, its data, its engines and its checkpoints."""
