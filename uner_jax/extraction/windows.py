"""Windows over a document that is longer than a prompt: overlapping, so that no entity is cut by both sides."""

import bisect
from typing import Protocol


class Offsets(Protocol):
    """What is needed of a tokenizer here."""

    def offsets(self, text: str) -> list[tuple[int, int]]: ...  # noqa: D102


def windows(text: str, tokenizer: Offsets, size: int, overlap: int) -> list[tuple[int, int]]:
    """The (start, end) of windows of at most `size` tokens that together cover the text.

    Offsets count code points. Neighbours share up to `overlap` tokens. A window begins and ends beside
    white space where there is some, so that no word is cut. A short text is one window.
    """
    ends = [end for _, end in tokenizer.offsets(text)]
    if len(ends) <= size:
        return [(0, len(text))]
    found = []
    first = start = 0
    while len(ends) - first > size:
        end = _word_end(text, start, ends[first + size - 1])
        found.append((start, end))
        shared = ends[max(bisect.bisect_left(ends, end) - overlap, first)]
        start = _word_start(text, max(shared, start + 1), end)
        first = max(first + 1, bisect.bisect_left(ends, start + 1))
    return [*found, (start, len(text))]


def _word_end(text: str, start: int, end: int) -> int:
    """The last white space in the second half of the window, or its end."""
    for place in range(end, (start + end) // 2, -1):
        if place == len(text) or text[place].isspace():
            return place
    return end


def _word_start(text: str, place: int, end: int) -> int:
    """The first word that begins at `place` or later, before `end`, or `place`."""
    for start in range(place, end):
        if text[start - 1].isspace() and not text[start].isspace():
            return start
    return place
