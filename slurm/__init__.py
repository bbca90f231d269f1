"""Slurm batch scripts, and the programs that they call."""
