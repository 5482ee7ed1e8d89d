"""Looking at extracted entities: one self-contained HTML page."""
