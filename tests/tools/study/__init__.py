"""Tests of tools/study/."""
