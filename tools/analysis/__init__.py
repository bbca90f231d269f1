"""What explains a model: gradient conflict and entropy."""
