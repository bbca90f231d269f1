"""Conditional n-gram entropy of token streams.

Counting with bounded memory, estimators, and what is written of them.
"""
