"""Dry run: a training step on fake CUDA tensors (no storage), without a GPU."""
