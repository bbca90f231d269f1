"""What `tools/gpu_check.py` measures on one GPU, a file for each subject; every function gives figures for JSON."""
