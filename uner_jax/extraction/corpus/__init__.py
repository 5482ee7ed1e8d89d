"""Corpus jobs: documents from files in, parts of records out, whatever is killed in between."""
