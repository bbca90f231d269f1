"""Tests of tools/entropy/."""
