"""Rows and their order: reading, mixing, choosing texts. Knows nothing of models."""
