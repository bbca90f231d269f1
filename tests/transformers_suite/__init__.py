"""transformers' own common suites on the classes of an export: `make test-transformers-suite`."""
