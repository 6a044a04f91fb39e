"""Bring a user's folder of datasets into the state that training wants."""
