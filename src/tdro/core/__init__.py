"""The algorithm: per-query losses -> statistics per group -> measure -> weights -> weighted loss.

Only torch and numpy; no files, clocks, logging, randomness, ranks or configuration.
"""
