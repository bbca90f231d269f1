"""Readers of run folders and their checkpoints."""
