"""Helpers for the operating system and for imports: errors, disks, threads, logging, strict YAML."""
