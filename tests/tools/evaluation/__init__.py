"""Tests of tools/evaluate.py."""
