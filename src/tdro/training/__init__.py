"""One loop for the three stages: reference, weights, robust."""
