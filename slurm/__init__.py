"""Batch scripts, and what they share."""
