"""Conditional n-gram entropy of token streams: counting with bounded memory, estimators, and what is written of them."""
