"""Tests of tools/analysis/entropy/."""
