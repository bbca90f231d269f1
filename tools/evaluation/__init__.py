"""Evaluations with reproducible results: benchmark prompts, input folders of official scorers, metrics.

`tools/evaluate.py` is the command.
"""
