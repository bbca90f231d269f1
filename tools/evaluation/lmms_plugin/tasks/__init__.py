"""Tasks of the lmms-eval plugin: none."""
