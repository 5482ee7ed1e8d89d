"""Extracted entities in the forms that other tools read."""
