"""Losses of single responses."""
