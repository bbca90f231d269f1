"""Corpora and code shards, shown to people."""
