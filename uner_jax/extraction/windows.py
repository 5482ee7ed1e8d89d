"""Windows on a document that is longer than a prompt: overlapping, so that no entity is cut by both sides."""

import bisect
from collections.abc import Sequence
from typing import Protocol

STOPS = (".", "!", "?", "…", "。", "！", "？", "।", "؟")
CLOSING = "\"'”’»)]」』"


class Offsets(Protocol):
    """What is needed of a tokenizer here."""

    def offsets(self, text: str) -> list[tuple[int, int]]: ...  # noqa: D102


def windows(text: str, tokenizer: Offsets, size: int, overlap: int) -> list[tuple[int, int]]:
    """The (start, end) of windows that together cover the text, each of at most `size` tokens by itself.

    Offsets count code points; one character may have more tokens than `size`, and is a window then.
    Neighbours share up to `overlap` tokens. A window ends with a sentence
    where one ends in its second half, else beside white space where there is some, so that no word is cut; it begins
    with a word. A short text is one window. With an overlap of at most a quarter of the size there are no more
    windows than four for every `size` tokens.
    """
    ends = [end for _, end in tokenizer.offsets(text)]
    if len(ends) <= size:
        return [(0, len(text))]
    ends[-1] = len(text)  # white space at the end may have no token
    start, end = 0, _fitting_end(text, 0, ends, tokenizer, size)
    found = [(start, end)]
    while end < len(text):
        shared = ends[max(bisect.bisect_left(ends, end) - overlap, 0)]
        start = _word_start(text, min(max(shared, start + 1), end), end)
        end = _fitting_end(text, start, ends, tokenizer, size)
        found.append((start, end))
    return found


def _fitting_end(text: str, start: int, ends: Sequence[int], tokenizer: Offsets, size: int) -> int:
    """Where the window that begins at `start` ends: it is counted again, for a cut token may become several."""
    first = bisect.bisect_right(ends, start)
    last = min(first + size, len(ends)) - 1
    while last >= first:
        # half of the tokens, not of the characters: a window must get farther than its overlap reaches back.
        whole = ends[last] == len(text)
        end = len(text) if whole else _word_end(text, ends[(first + last) // 2], ends[last])
        excess = len(tokenizer.offsets(text[start:end])) - size
        if excess <= 0:
            return end
        # a character of several tokens goes whole.
        last = min(bisect.bisect_right(ends, end) - 1 - excess, bisect.bisect_left(ends, end) - 1)
    return start + 1


def _word_end(text: str, middle: int, end: int) -> int:
    """The last end of a sentence behind the middle of the window, else the last white space, else its end."""
    spaces = [place for place in range(end, middle, -1) if text[place].isspace()]
    return next((place for place in spaces if _ends_sentence(text, place)), spaces[0] if spaces else end)


def _ends_sentence(text: str, place: int) -> bool:
    """Whether the white space at that place follows the end of a sentence, or is one itself."""
    if text[place] == "\n":
        return True
    before = text[max(place - 4, 0) : place].rstrip(CLOSING)
    return before.endswith(STOPS)


def _word_start(text: str, place: int, end: int) -> int:
    """The first word that begins at `place` or later, before `end`, or `place`."""
    for start in range(place, end):
        if text[start - 1].isspace() and not text[start].isspace():
            return start
    return place
