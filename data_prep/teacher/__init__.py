"""The teacher: its prompts, the client that asks it, the store of what it answered, and how answers are read."""
