"""A token-per-line file -> sentences of tokens and their tags, whatever the order of the columns is.

A blank line ends a sentence, and so does a document separator (`-DOCSTART-`). What stands between the columns, which
of them is the tag and which the token is seen from the whole file, or said by the caller.
"""

import re
import zlib
from collections import Counter
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

from uner_jax.records import InputError, open_text

# any prefix that a scheme knows, so that a column of tags is seen as one before its scheme is.
TAG = re.compile(r"O|[BIESLUMW]-\s*\S.*")
# CoNLL-2003 and JNLPBA; the line may have a tag, as the others do.
DOCUMENT = re.compile(r"(?:^|\s)(?:-DOCSTART-|###MEDLINE:\d+)(?=\s|$)")
COMMENT = re.compile(r"#(?: |$)")


class Token(NamedTuple):
    """A token as it stands in its column, its tag, and the number of its line."""

    text: str
    tag: str
    line: int


@dataclass(frozen=True)
class Layout:
    """Where a file's tokens and tags stand; columns count from 0."""

    separator: str
    width: int
    token: int
    tag: int

    def __str__(self) -> str:
        between = "tabs" if self.separator == "\t" else "spaces"
        return f"{between}, {self.width} columns, token in column {self.token + 1}, tag in column {self.tag + 1}"


@dataclass(frozen=True)
class TaggedFile:
    """The sentences of a file and how it is laid out."""

    layout: Layout
    sentences: list[list[Token]]
    documents: int
    comments: int


# the number of a line and what stands in it.
Line = tuple[int, str]


def read_tagged(path: Path, token_column: int | None = None, tag_column: int | None = None) -> TaggedFile:
    """Read a file (plain, `.gz`, `.zst`) of one token a line, in UTF-8.

    The columns, counted from 1, are found if they are not given: the tag in the last or the first one, the token in
    the first of the others that is not a running number. Lines end at a line feed, with or without a carriage
    return, and nowhere else. A token is what stands in its column, even if that is nothing. Lines that begin with
    "# " before a sentence are comments, unless they are whole rows. Raises InputError with file and line for a line
    without its columns, and if the columns cannot be told.
    """
    lines = _read_lines(path)
    blocks, documents = _blocks(lines)
    if not blocks:
        raise InputError(f"{path}: has no sentences; expected a token and its tag in each line")
    layout = _find_layout(path, [line for block in blocks for line in block], token_column, tag_column)
    rows = [_without_comments(block, layout) for block in blocks]
    sentences = [[_token(path, line, layout) for line in block] for block in rows if block]
    return TaggedFile(layout, sentences, documents, sum(map(len, blocks)) - sum(map(len, rows)))


def _read_lines(path: Path) -> list[Line]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with open_text(path) as file:
            # bytes, since text would end a line at a lone carriage return too, which is part of a token.
            raw = bytes(cast(TextIOWrapper, file).buffer.read())
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    lines = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            lines.append((number, line.removesuffix(b"\r").decode("utf-8")))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: not UTF-8 ({error}); convert the file to UTF-8") from error
    return lines


def _blocks(lines: list[Line]) -> tuple[list[list[Line]], int]:
    """The lines between blank lines and document separators, and how many of the latter there are."""
    blocks: list[list[Line]] = [[]]
    documents = 0
    for number, line in lines:
        is_document = DOCUMENT.search(line) is not None
        documents += is_document
        if is_document or not line.strip():
            blocks.append([])
        else:
            blocks[-1].append((number, line))
    return [block for block in blocks if block], documents


def _find_layout(path: Path, lines: list[Line], token_column: int | None, tag_column: int | None) -> Layout:
    # a comment has as many words as it likes: it says nothing about the columns.
    lines = [line for line in lines if not COMMENT.match(line[1])]
    if not lines:
        raise InputError(f"{path}: has comments and no sentences; expected a token and its tag in each line")
    # a token may hold a space where tabs stand between the columns, so that an even number means tabs.
    with_tab, with_space = (sum(mark in line.strip(" ") for _, line in lines) for mark in "\t ")
    separator = "\t" if 0 < with_tab >= with_space else " "
    cells = [(number, _split(line, separator)) for number, line in lines]
    widths = Counter(len(row) for _, row in cells)
    width = max(widths, key=lambda width: (widths[width], width))
    rows = [(number, row) for number, row in cells if len(row) == width]
    if width == 1:
        number, (found,) = rows[0]
        raise InputError(
            f"{path}, line {number}: one column ({found!r:.80}); "
            "expected a token and its tag with a tab or a space between"
        )
    for option, column in (("--token-column", token_column), ("--tag-column", tag_column)):
        if column is not None and not 1 <= column <= width:
            raise InputError(f"{option} must be 1 to {width}, the columns of {path}, found {column}")
    tag = _find_tag(path, rows) if tag_column is None else tag_column - 1
    token = _find_token(path, rows, tag) if token_column is None else token_column - 1
    if tag == token:
        raise InputError(
            f"{path}: column {tag + 1} cannot hold both the token and its tag: give another --token-column"
        )
    return Layout(separator, width, token, tag)


def _find_tag(path: Path, rows: list[tuple[int, list[str]]]) -> int:
    width = len(rows[0][1])
    valid = [sum(_is_tag(row[column]) for _, row in rows) for column in range(width)]
    first, last = valid[0], valid[-1]
    if 2 * max(first, last) >= len(rows) and first != last:
        return 0 if first > last else width - 1
    inner = [column for column in range(1, width - 1) if valid[column] == len(rows)]
    if 2 * max(first, last) < len(rows) and len(inner) == 1:
        return inner[0]
    for number, row in rows:
        if not (_is_tag(row[0]) or _is_tag(row[-1])):
            raise InputError(
                f"{path}, line {number}: neither {row[0]!r:.80} nor {row[-1]!r:.80} is a tag, as most lines begin or "
                "end with; expected O or a prefix, a hyphen and a type, as in B-person: correct the tag, or say with "
                "--tag-column where the tags stand"
            )
    raise InputError(
        f"{path}: as many tags in the first column as in the last ({first:,} of {len(rows):,} lines): "
        f"say which it is with --tag-column 1 or --tag-column {width}"
    )


def _is_tag(cell: str) -> bool:
    return TAG.fullmatch(cell.strip()) is not None


def _find_token(path: Path, rows: list[tuple[int, list[str]]], tag: int) -> int:
    others = [column for column in range(len(rows[0][1])) if column != tag]
    if tag == 0 and len(others) > 1:
        raise InputError(
            f"{path}: the tag is in the first of {len(others) + 1} columns, and any other may be the token's: "
            "say which with --token-column"
        )
    # WikiNEuRal, GermEval and CoNLL-U number the tokens of a sentence.
    numbered = len(others) > 1 and _counts_up([row[others[0]] for _, row in rows])
    return others[1] if numbered else others[0]


def _counts_up(cells: list[str]) -> bool:
    """Whether the cells count the tokens of each sentence from 0 or 1."""
    if not all(cell.isdecimal() for cell in cells):
        return False
    numbers = [int(cell) for cell in cells]
    return all(number in (0, 1) or number == before + 1 for before, number in pairwise([-1, *numbers]))


def _split(line: str, separator: str) -> list[str]:
    if separator == " ":
        return re.split(" +", line.strip(" "))
    cells = line.split("\t")
    # a tab at the end of a line that has its columns begins no other.
    return cells[:-1] if len(cells) > 2 and not cells[-1].strip() else cells


def _without_comments(block: list[Line], layout: Layout) -> list[Line]:
    """The lines from the first that is not a comment; a "#" further on is a token."""
    for place, (_, line) in enumerate(block):
        cells = _split(line, layout.separator)
        is_row = len(cells) == layout.width and _is_tag(cells[layout.tag])
        if is_row or not COMMENT.match(line):
            return block[place:]
    return []


def _token(path: Path, line: Line, layout: Layout) -> Token:
    number, text = line
    cells = _split(text, layout.separator)
    if len(cells) != layout.width:
        between = "tabs" if layout.separator == "\t" else "spaces"
        raise InputError(
            f"{path}, line {number}: {len(cells)} columns in {text!r:.80}, separated by {between}; "
            f"expected {layout.width}, as in most lines: add what is missing, or take out what is too much"
        )
    return Token(cells[layout.token], cells[layout.tag].strip(), number)
