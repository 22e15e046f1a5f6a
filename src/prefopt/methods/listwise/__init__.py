"""Losses of ranked lists."""
