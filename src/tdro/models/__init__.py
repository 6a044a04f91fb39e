"""Encoders: loading, saving, one forward pass, and how texts share it."""
