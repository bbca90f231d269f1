"""Tests of pretrain/conflict/."""
