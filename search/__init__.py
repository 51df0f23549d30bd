"""Queries against both indexes, explanations, and their commands."""
