"""Tests of tokenization/."""
