"""Hugging Face folders: export from checkpoints, loading, and the text path alone."""
