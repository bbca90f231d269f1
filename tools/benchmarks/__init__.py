"""Benchmarks of training, tokenization, generation and start-up."""
