"""lmms-eval looks here for tasks of a plugin; there are none."""
