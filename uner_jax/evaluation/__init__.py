"""Scorers, and benchmark runs over question files."""
