"""Reading what a model answered: a list of strings, in which nothing that it said is lost.

The model is trained to answer with `json.dumps(list of spans)` (arXiv 2308.03279). The released
parser drops the whole answer if one thing about it is odd (see `evaluation/scorers.py`); this one
keeps every whole string. It evaluates nothing, never raises, and reads each character a bounded
number of times: what a model says is input from outside.
"""

import dataclasses
import json
import re

# Possessive throughout, so that no failed match goes back over what it has read. What is cut off
# inside a string is no literal.
_DOUBLE = r'"[^"\\]*+(?:\\.[^"\\]*+)*+'
_SINGLE = r"'[^'\\]*+(?:\\.[^'\\]*+)*+"

# "[note]" and "[sic]" in the words before the answer begin no list; "[1]" may.
_OPENING = re.compile(
    r"""\[(?=\s*+(?:["'\[\]({]|(?:-?\d[\d.eE+-]*+|true|false|null|True|False|None)\s*+[,\]]))""",
)
_SEPARATOR = re.compile(r"[\s,]*+")
# A quote that is followed by other text closed nothing: 'King's College' holds no item King. A
# forgotten comma is forgiven.
_STRING = re.compile(rf"""(?:{_DOUBLE}"|{_SINGLE}')(?=\s*+(?:[,\]]|\Z)|\s++["'])""", re.DOTALL)
_STRUCTURE = re.compile(rf'{_DOUBLE}(?:"|\\?\Z)|[\[\](){{}},]', re.DOTALL)
_CUT_SINGLE = re.compile(rf"{_SINGLE}\\?\Z", re.DOTALL)
_ESCAPE_OR_QUOTE = re.compile(r'\\(?:(?P<json>["\\/bfnrt]|u[0-9a-fA-F]{4})|x(?P<hex>[0-9a-fA-F]{2})|.)|"', re.DOTALL)
_DECODER = json.JSONDecoder(strict=False)


@dataclasses.dataclass(frozen=True)
class Item:
    """One string of an answer.

    `answer[start:end]` is the inside of its literal as the model wrote it, escapes and all (code
    points, end exclusive), so that the probabilities of its tokens can be found.
    """

    text: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """The strings of an answer, in order, repeats and all; `complete` is False if no `]` closed the list."""

    items: tuple[Item, ...]
    complete: bool


def parse_answer(answer: str) -> Answer:
    r"""The strings of the first list in a model's answer. Never raises.

    Words, newlines and code fences around the list are passed over, and so is a list that has
    values but no string, such as the "[1]" of a citation, if another list follows. Inside it,
    numbers, literals, objects, nested lists and unquoted words are skipped, and empty and blank
    strings dropped. A list that was cut off keeps its whole strings and is not `complete`; so is an
    answer without a list. Strings in single quotes are read as Python's, and a backslash that
    escapes nothing (`C:\dir`) is itself. Time is linear in the length of the answer.
    """
    position, complete = 0, False
    while opening := _OPENING.search(answer, position):
        values, position, complete = _read_list(answer, opening.end())
        if any(values) or not (values and complete):
            return Answer(tuple(item for item in values if item and item.text.strip()), complete)
    return Answer((), complete)


def _read_list(answer: str, position: int) -> tuple[list[Item | None], int, bool]:
    """The values from after a `[`, None for what is no string; where they end; and if a `]` was there."""
    values: list[Item | None] = []
    while separator := _SEPARATOR.match(answer, position):
        position = separator.end()
        if position == len(answer):
            break
        if answer[position] == "]":
            return values, position + 1, True
        literal = _STRING.match(answer, position)
        values.append(_item(literal) if literal else None)
        position = literal.end() if literal else _skip_value(answer, position)
    return values, position, False


def _skip_value(answer: str, position: int) -> int:
    """Where the value that begins at `position` ends: at the next `,` or `]` outside its strings and brackets."""
    if _CUT_SINGLE.match(answer, position):
        return len(answer)
    depth = 0
    for mark in _STRUCTURE.finditer(answer, position):
        if depth == 0 and mark[0] in ",]":
            return mark.start()
        if mark[0] in "[{(":
            depth += 1
        elif mark[0] in "]})":
            depth = max(depth - 1, 0)
    return len(answer)


def _item(literal: re.Match[str]) -> Item:
    text, _ = _DECODER.raw_decode(f'"{_ESCAPE_OR_QUOTE.sub(_as_json, literal[0][1:-1])}"')
    return Item(text, literal.start() + 1, literal.end() - 1)


def _as_json(found: re.Match[str]) -> str:
    r"""An escape or a bare quote, as JSON writes it; of Python's own escapes those that repr() makes, \' and \xhh."""
    if found["json"]:
        return found[0]
    if found["hex"]:
        return f"\\u00{found['hex']}"
    return {'"': '\\"', "\\'": "'"}.get(found[0], f"\\{found[0]}")
