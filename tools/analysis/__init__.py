"""Model analysis: gradient conflict and entropy."""
