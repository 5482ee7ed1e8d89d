"""Documents -> passages: whole sentences, as many as fit into a number of tokens."""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import NamedTuple

import sentencex

from uner_jax.tokenizer import Tokenizer

# The splitter is quadratic in the marks that stay open, so it never sees more characters than this at once.
WINDOW = 1 << 14
# A sentence of more characters a token is too long without being tokenized.
LONGEST_TOKEN = 16
# The splitter fails on wide spaces around an initial ("A\u00a0."): it is shown plain ones in their places.
PLAIN_SPACES = {code: " " for code in range(0x80, 0x3001) if chr(code).isspace()}
# It takes all between two marks for one sentence, also when the first of them closes what was opened before.
NO_MARKS = PLAIN_SPACES | dict.fromkeys(map(ord, "\"'`´“”„‟‘’‚‛«»‹›「」『』()[]{}"), " ")


class Cut(NamedTuple):
    """A passage and its number of tokens; without text, a stretch that has no place to cut it at."""

    text: str | None
    tokens: int


class _Piece(NamedTuple):
    """What is never cut: a sentence or a line, from `start` to `end`, with the space behind it.

    `tokens` is what it has alone, None if that is too many; `size` what it adds to a passage, about.
    """

    start: int
    end: int
    tokens: int | None
    size: int


class Cutter:
    """Cuts documents into passages of at most `max_tokens` tokens of a tokenizer, without BOS.

    A passage is a slice of its document without space around it: whole sentences, while they fit. A
    sentence that is too long alone is cut at its line breaks; a line that is too long is left out.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int):
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._longest = LONGEST_TOKEN * max_tokens

    def cut(self, text: str) -> Iterator[Cut]:
        """The passages in order, and in their places what had to be left out."""
        waiting: list[_Piece] = []
        size = 0
        for piece in self._pieces(text, 0):
            while waiting and (piece.tokens is None or size + piece.size > self._max_tokens):
                yield self._take(text, waiting)
                size = sum(one.size for one in waiting)
            if piece.tokens is None:
                yield Cut(None, 0)
            elif waiting or piece.tokens:
                waiting.append(piece)
                size += piece.size
        while waiting:
            yield self._take(text, waiting)

    def _take(self, text: str, waiting: list[_Piece]) -> Cut:
        """Take from the front as many pieces as fit: their sizes are estimates."""
        taken, tokens = 1, waiting[0].tokens or 0
        for count in range(len(waiting), 1, -1):
            found = self._count(text[waiting[0].start : waiting[count - 1].end].strip())
            if found <= self._max_tokens:
                taken, tokens = count, found
                break
        passage = text[waiting[0].start : waiting[taken - 1].end].strip()
        del waiting[:taken]
        while waiting and not waiting[0].tokens:
            del waiting[0]
        return Cut(passage, tokens)

    def _pieces(self, text: str, start: int, splitter: int = 0) -> Iterator[_Piece]:
        place = 0
        for end in SPLITTERS[splitter](text):
            piece = self._piece(text[place:end], start + place)
            if piece.tokens is None and splitter + 1 < len(SPLITTERS):
                yield from self._pieces(text[place:end], start + place, splitter + 1)
            else:
                yield piece
            place = end

    def _piece(self, part: str, start: int) -> _Piece:
        bare, end = part.strip(), start + len(part)
        tokens = self._count(bare) if len(bare) <= self._longest else None
        if tokens is None or tokens > self._max_tokens:
            return _Piece(start, end, None, 0)
        space = part[len(part.rstrip()) :]
        # line breaks make tokens, and a single space none. Never more than bytes: `most_passages` counts on it.
        size = min(max(1, tokens + space.count("\n") + (len(space) > 1)), len(part.encode()))
        return _Piece(start, end, tokens, size)

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text)) if text else 0


def _sentences(text: str, shown: dict[int, str] = PLAIN_SPACES) -> Iterator[int]:
    """Where the sentences of a text end, one after the other; `shown` says how the splitter sees characters."""
    place = 0
    while place < len(text):
        window = text[place : place + WINDOW].translate(shown)
        ends = [place + found["end_index"] for found in sentencex.get_sentence_boundaries("en", window)]
        if place + WINDOW < len(text):
            # the last one may go on behind the window. The next window begins with it; if there is no other, it
            # is longer than a window, and ends with the first of the next one.
            ends.pop()
        yield from ends
        place = ends[-1] if ends else place + WINDOW


def _sentences_without_marks(text: str) -> Iterator[int]:
    return _sentences(text, NO_MARKS)


def _lines(text: str) -> Iterator[int]:
    return accumulate(map(len, text.splitlines(keepends=True)))


# each for what the one before left too long.
SPLITTERS: tuple[Callable[[str], Iterator[int]], ...] = (_sentences, _sentences_without_marks, _lines)
