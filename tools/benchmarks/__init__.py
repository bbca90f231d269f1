"""What `tools/bench_step.py` measures, and how."""
