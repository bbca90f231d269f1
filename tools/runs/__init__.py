"""Run folders and their checkpoints, opened to look at or to measure."""
