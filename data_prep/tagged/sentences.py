"""Token-per-line files -> sentences: the text that a question shows, and where its entities stand in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from data_prep.tagged.columns import Token, read_tagged
from data_prep.tagged.schemes import Scheme, Span, decode
from uner_jax.records import InputError


class Mention(NamedTuple):
    """The characters `start` to `end` (exclusive) of a sentence's text, and their label as the file has it."""

    start: int
    end: int
    label: str


class Sentence(NamedTuple):
    """The tokens with single spaces between, and the entities in order of occurrence."""

    text: str
    mentions: list[Mention]


@dataclass(frozen=True)
class TaggedSentences:
    """The sentences of a file, those without text too, and in words what the file looks like."""

    layout: str
    sentences: list[Sentence]


def read_sentences(
    path: Path, scheme: Scheme | None = None, token_column: int | None = None, tag_column: int | None = None
) -> TaggedSentences:
    """Read a file; scheme and columns (from 1) are found unless given. Raises InputError with file and line."""
    file = read_tagged(path, token_column, tag_column)
    dialect, spans = decode(path, file.sentences, scheme)
    layout = (
        f"{file.layout}, {dialect}; {len(file.sentences):,} sentences, {file.documents:,} document separators, "
        f"{file.comments:,} comment lines"
    )
    pairs = zip(file.sentences, spans, strict=True)
    return TaggedSentences(layout, [Sentence(_text(pair[0]), list(_mentions(path, *pair))) for pair in pairs])


def _text(tokens: list[Token]) -> str:
    return " ".join(token.text for token in tokens)


def _mentions(path: Path, tokens: list[Token], spans: list[Span]) -> Iterator[Mention]:
    starts = list(accumulate((len(token.text) + 1 for token in tokens), initial=0))
    for first, behind, label in spans:
        text = _text(tokens[first:behind])
        if not text.strip():
            raise InputError(
                f"{path}, line {tokens[first].line}: the tag {tokens[first].tag!r} stands on no text; "
                "write the token, or give it the tag O"
            )
        # a token may have a space around it, and an answer never has.
        start = starts[first] + len(text) - len(text.lstrip())
        yield Mention(start, start + len(text.strip()), label)
