"""Names of lmms-eval's models, and their classes in the modules of these names."""

AVAILABLE_MODELS = {"unix": "UniX"}
