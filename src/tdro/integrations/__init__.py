"""Bridges to other programs; each needs an extra."""
