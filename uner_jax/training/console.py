"""What a run says to the person who started it."""

import sys

import jax


def say(text: str) -> None:
    """A line on standard error, once however many hosts there are."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)
