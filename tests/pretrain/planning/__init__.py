"""Tests of the layout planner."""
