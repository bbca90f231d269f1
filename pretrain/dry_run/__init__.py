"""A training step on tensors that say that they are on a GPU, and hold nothing."""
