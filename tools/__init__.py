"""Commands, one per file, and their libraries in packages by subject."""
