"""Hugging Face classes. They import torch and transformers only, so that they can travel inside an export."""
