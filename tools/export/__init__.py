"""Hugging Face folders: written from checkpoints, opened, and their text path alone."""
