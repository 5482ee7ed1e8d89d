"""Conversations as tokens: encoded in blocks with what was seen before remembered, here or on Apache Beam."""
