"""One command per file: convert, generate, inspect, report."""
