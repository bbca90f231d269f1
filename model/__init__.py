"""What a Uni-X model is: configuration, vocabulary, token routing, layers, Hugging Face classes."""
