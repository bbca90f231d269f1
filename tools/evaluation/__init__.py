"""Evaluations whose results say what they were made of: prompts of benchmarks, what official scorers read, measures.

`tools/evaluate.py` is the command.
"""
