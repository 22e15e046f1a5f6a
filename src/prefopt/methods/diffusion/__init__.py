"""Losses whose constants belong to denoising errors."""
