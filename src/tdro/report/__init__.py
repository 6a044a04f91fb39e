"""Reads run folders and says what they show, as a page; no torch."""
