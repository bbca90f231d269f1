"""The Uni-X model: configuration, vocabulary, token routing, layers, Hugging Face classes."""
