r"""Lists, tuples and objects in a text that is neither quite JSON nor quite Python: a teacher's answer.

`scan` builds `Group`s that hold strings (what was quoted), `Bare` words and further groups, with a stack of its own
in place of recursion, and evaluates nothing.

Where a quote inside a string was not escaped, a string ends at the first quote after which the text goes on as it
would after a string: not in `'O'Brien'`, but before `, "` or `)`. A group whose strings may end elsewhere as well says
so: it is doubtful or spoiled.
"""

import re
from dataclasses import dataclass, field
from typing import Any

MAX_DEPTH = 100

# Opening quote -> what closes it. Curly quotes are often turned the wrong way, or closed by a straight one.
CLOSING = {
    '"': '"',
    "'": "'",
    **dict.fromkeys("“”„‟", '“”"'),
    **dict.fromkeys("‘’‚‛", "‘’'"),
    "«": "»",
    "»": "«",
}
QUOTES = "".join(CLOSING)
PARTNER = {")": "(", "]": "[", "}": "{"}

# All repetitions are possessive or bounded, so that no text makes the scanner slow.
_QUOTE = rf"""(?:[uU](?=["']))?+[{QUOTES}]"""
_GAP = r"\s*+(?:(?:#|//)\s[^\n]{0,200}+\n\s*+)?+"
_BARE = rf"[^\s,()\[\]{{}}:;{QUOTES}](?:[^,()\[\]{{}}:;\n{QUOTES}]|(?<=\w)['’](?=\w)){{0,200}}+"
_KEY = r"""(?:"(?:[^"\\]|\\.){0,200}+"|'(?:[^'\\]|\\.){0,200}+'|[“”][^“”"]{0,200}+[“”"]|[A-Za-z_][\w ]{0,60}+)\s*+:"""
# A closing bracket ends something only if the text then goes on as it does between items, or ends.
_END = r"[)\]}](?=[^\S\n]*+(?:\Z|[\n,;.\])}(\[{#|`]|[-–—:]\s|//))"
# What may come after the closing quote of a string: in a list or tuple, of a key, and of a value. Not the end of the
# text: the string may have gone on behind that quote.
_AFTER_ITEM = re.compile(
    rf"\s*+(?:{_END}|,{_GAP}(?:\Z|{_QUOTE}|[\[({{\])}}]|{_BARE}\s*+[,)\]}}])|:\s*+{_QUOTE}|(?<=\s){_QUOTE})"
)
_AFTER_KEY = re.compile(r"\s*+[:,}]")
_AFTER_VALUE = re.compile(rf"\s*+(?:{_END}|,{_GAP}(?:\Z|\}}|{_KEY})|(?<=\s){_KEY})", re.DOTALL)

# Brackets of prose, of citations and of formulas begin no list; a tuple outside a list begins a line, or follows
# a colon or another tuple.
_OPENING = re.compile(
    rf"\[(?=\s*+(?:{_QUOTE}|[\[({{\]]|\Z))"
    r"|\A\[(?=\s*+(?:[-\d]|true|false|null|NaN|Infinity))"
    rf"|\{{(?=\s*+(?:{_QUOTE}|\}}|\Z|[(\[{{]\s*+{_QUOTE}|[A-Za-z_]\w{{0,60}}+\s*+:))"
    rf"|\((?=\s*+{_QUOTE})"
)
_BEFORE_TUPLE = re.compile(r"[\n:;,()\]}][^\S\n]*+(?:(?:[-*•·+]|\(?\d{1,4}[.):]{1,2})[^\S\n]*+)?\Z")
_BEFORE_TUPLE_LENGTH = 24
_SKIPPED = re.compile(r"(?:\s++|(?:#|//)(?=\s)[^\n]*+)*+")
_STRING = re.compile(rf"(?:[uU](?=[\"']))?([{QUOTES}])")
_WORD = re.compile(_BARE)
_MARKS = {opening: re.compile(rf"\\.|[{closing}]", re.DOTALL) for opening, closing in CLOSING.items()}
_ESCAPE = re.compile(
    r"\\(?:u(?P<high>[dD][89abAB][\da-fA-F]{2})\\u(?P<low>[dD][c-fC-F][\da-fA-F]{2})"
    r"|(?:u(?P<four>[\da-fA-F]{4})|U(?P<eight>[\da-fA-F]{8})|x(?P<two>[\da-fA-F]{2}))|(?P<one>.))",
    re.DOTALL,
)
# A backslash before anything else is itself: "C:\dir".
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\\": "\\", "/": "/"} | {q: q for q in QUOTES}


class TooDeepError(Exception):
    """Groups are nested deeper than MAX_DEPTH, which no answer needs."""


@dataclass(frozen=True, slots=True)
class Bare:
    """A word, number or constant that stands without quotes."""

    text: str


@dataclass(slots=True)
class Group:
    """A list "[", a tuple "(" or an object "{" with its `entries`; in an object, `items` are what has no key.

    `cut`: the text ends inside it. `spoiled`: what its strings are is anybody's guess. `doubtful`: only if it has
    two items they make sense.
    """

    kind: str
    items: list[Any] = field(default_factory=list)
    entries: list[tuple[str, Any]] = field(default_factory=list)
    cut: bool = False
    spoiled: bool = False
    doubtful: bool = False
    unpaired: int = 0
    separated: bool = True
    key: str | None = None

    def add(self, item: Any) -> None:
        """Take in the next item: in an object, the value of the key before it, or what may be a key."""
        if not self.separated and self.items:
            # a forgotten comma is forgiven between two strings, and beside a group.
            both_quoted = isinstance(self.items[-1], str) and isinstance(item, str)
            self.doubtful |= both_quoted
            self.spoiled |= not (both_quoted or isinstance(self.items[-1], Group) or isinstance(item, Group))
        if self.key is None:
            self.items.append(item)
        else:
            self.entries.append((self.key, item))
        self.separated, self.key = False, None

    def colon(self) -> None:
        """Take in a colon: in an object it makes a key of what stands before it, elsewhere it is a comma."""
        if self.kind != "{":
            self.doubtful = True
        elif self.items and isinstance(self.items[-1], str | Bare):
            key = self.items.pop()
            self.key = key if isinstance(key, str) else key.text
        self.separated = True

    def comma(self) -> None:
        """Take in a comma: between items, or one too many."""
        self.separated, self.key = True, None

    def judge(self, inner_quotes: int) -> None:
        """Take in how many quotes stand inside the next string: two, as around "big", or one that may be a boundary."""
        self.doubtful |= inner_quotes > 0
        self.unpaired += inner_quotes % 2
        self.spoiled |= self.unpaired > 1


def scan(text: str) -> tuple[list[Group], bool]:
    """The outermost groups of a text, and whether it ends inside one. Time is linear in its length.

    Raises TooDeepError.
    """
    roots: list[Group] = []
    open_groups: list[Group] = []
    position = 0
    while position < len(text):
        if not open_groups:
            opening = _find_opening(text, position)
            if opening is None:
                break
            open_groups.append(Group(text[opening]))
            position = opening + 1
            continue
        position = _SKIPPED.match(text, position).end()  # type: ignore[union-attr]
        if position < len(text):
            position = _scan_token(text, position, roots, open_groups)
    is_cut = bool(open_groups)
    while open_groups:
        _leave(roots, open_groups).cut = True
    return roots, is_cut


def _find_opening(text: str, position: int) -> int | None:
    for opening in _OPENING.finditer(text, position):
        start = opening.start()
        before = text[start - _BEFORE_TUPLE_LENGTH : start] if start > _BEFORE_TUPLE_LENGTH else "\n" + text[:start]
        if text[start] != "(" or _BEFORE_TUPLE.search(before):
            return start
    return None


def _scan_token(text: str, position: int, roots: list[Group], open_groups: list[Group]) -> int:
    """Take in what stands at `position`, inside a group; returns where it ends."""
    group, char = open_groups[-1], text[position]
    if char in "([{":
        if len(open_groups) == MAX_DEPTH:
            raise TooDeepError
        open_groups.append(Group(char))
    elif char in ")]}":
        _close(PARTNER[char], roots, open_groups)
    elif char in ",;":
        group.comma()
    elif char == ":":
        group.colon()
    elif opening := _STRING.match(text, position):
        return _scan_string(text, opening, group)
    elif word := _WORD.match(text, position):
        group.add(Bare(word[0].strip()))
        return word.end()
    return position + 1


def _close(kind: str, roots: list[Group], open_groups: list[Group]) -> None:
    """Close the innermost group of that kind, and those inside it, whose brackets were forgotten."""
    if all(group.kind != kind for group in open_groups):
        return
    while _leave(roots, open_groups).kind != kind:
        pass


def _leave(roots: list[Group], open_groups: list[Group]) -> Group:
    """Put the innermost group into the one around it."""
    group = open_groups.pop()
    (open_groups[-1].add if open_groups else roots.append)(group)
    return group


def _scan_string(text: str, opening: re.Match[str], group: Group) -> int:
    """Take in a string; one that ends nowhere is cut off, and takes the rest of the text with it."""
    after = _AFTER_ITEM
    if group.kind == "{":
        after = _AFTER_KEY if group.key is None else _AFTER_VALUE
    inner_quotes = 0
    for mark in _MARKS[opening[1]].finditer(text, opening.end()):
        if mark[0][0] == "\\":
            continue
        if after.match(text, mark.end()):
            group.judge(inner_quotes)
            group.add(unescape(text[opening.end() : mark.start()]))
            return mark.end()
        # the quote of "O'Brien" is no boundary of anything.
        inner_quotes += not (text[mark.start() - 1].isalnum() and text[mark.end() : mark.end() + 1].isalnum())
    return len(text)


def unescape(text: str) -> str:
    r"""Undo the escapes of JSON, and of Python those that repr() writes; \u escapes of a surrogate pair are one."""
    return _ESCAPE.sub(_escaped, text) if "\\" in text else text


def _escaped(found: re.Match[str]) -> str:
    if found["high"]:
        return chr(0x10000 + ((int(found["high"], 16) & 0x3FF) << 10 | int(found["low"], 16) & 0x3FF))
    if found["one"]:
        return _ESCAPED.get(found["one"], found[0])
    code = int(found["four"] or found["eight"] or found["two"], 16)
    return chr(code) if code <= 0x10FFFF else found[0]
