"""Inspection pages of corpora and code shards."""
