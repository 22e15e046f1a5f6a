"""Losses that look at single tokens."""
