"""Measurements of `tools/gpu_check.py` on one GPU, a file for each subject; every function returns results for JSON."""
