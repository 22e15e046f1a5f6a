"""Losses that compare a chosen with a rejected response."""
