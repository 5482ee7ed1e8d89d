"""A text with its entities, and a table of them, for a terminal.

With colours an entity stands on its type's colour, and where entities overlap the one that ends
first is on top; without, it stands in brackets. The label stands where the entity ends.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import IO, Any

from uner_jax.view.layout import segments
from uner_jax.view.markup import colours

# Backgrounds of the terminal's 256 colours for .c0 to .c11 of page.css, all light: the text on them is black.
BACKGROUNDS = (217, 216, 222, 228, 150, 121, 123, 117, 111, 147, 183, 218)
# when all hues are in use: plain, underlined, in italics, underlined twice.
STYLES = ("", ";4", ";3", ";21")
RESET = "\x1b[0m"
TEXT_COLUMNS = 60

# A control character could move the cursor or recolour what follows: none but the line's end and the tab is shown.
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160), *range(0xD800, 0xE000)} - {9, 10}, "\ufffd")


def shows_colours(stream: IO[str], environment: Mapping[str, str]) -> bool:
    """Whether to write colours there: a terminal that knows them, of a user who did not set NO_COLOR."""
    return stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def printable(text: str) -> str:
    """`text` of the same length, with U+FFFD for what a terminal would obey or cannot show."""
    return text.translate(_CONTROLS)


def marked(text: str, entities: list[Any], labels: Sequence[str], coloured: bool) -> str:
    """The text with its entities marked."""
    styles = _styles(labels)
    parts = []
    for start, end, covering in segments(text, entities):
        piece = printable(text[start:end])
        if not coloured:
            piece = "[" * sum(entities[i]["start"] == start for i in covering) + piece
        elif covering:
            piece = _on(styles[entities[covering[-1]]["label"]], piece)
        parts.append(piece)
        # the innermost ends first.
        for index in reversed([i for i in covering if entities[i]["end"] == end]):
            label = printable(entities[index]["label"])
            parts.append(_on(styles[entities[index]["label"]] + ";1", f" {label}") if coloured else f"|{label}]")
    return "".join(parts)


def table(entities: list[Any], labels: Sequence[str], coloured: bool) -> str:
    """A line for each entity, under a line of headings."""
    styles = _styles(labels)
    rows = [("type", "score", "offsets", "text")]
    rows += [(_cell(e["label"]), f"{e['score']:.2f}", f"{e['start']}–{e['end']}", _cell(e["text"])) for e in entities]
    widths = [max(width(row[column]) for row in rows) for column in range(3)]
    lines = []
    for number, (label, score, offsets, text) in enumerate(rows):
        first = label + " " * (widths[0] - width(label))
        if coloured and number:
            first = _on(styles[entities[number - 1]["label"]], label) + " " * (widths[0] - width(label))
        lines.append(f"  {first}  {score:>{widths[1]}}  {offsets:>{widths[2]}}  {text}")
    return "\n".join(lines)


def width(text: str) -> int:
    """The columns that a text takes: two for a wide letter, none for a mark on the letter before."""
    return sum(
        0 if unicodedata.category(x) in ("Mn", "Me", "Cf") else 2 if unicodedata.east_asian_width(x) in "WF" else 1
        for x in text
    )


def _styles(labels: Sequence[str]) -> dict[str, str]:
    styles = {}
    for label, classes in colours(labels).items():
        hue, rule = (int(name[1:]) for name in classes.split())
        styles[label] = f"48;5;{BACKGROUNDS[hue]};38;5;16{STYLES[rule]}"
    return styles


def _on(style: str, text: str) -> str:
    # a background that is on at a line's end would fill the rest of the line.
    return "\n".join(f"\x1b[{style}m{line}{RESET}" if line else "" for line in text.split("\n"))


def _cell(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= TEXT_COLUMNS else line[: TEXT_COLUMNS - 1] + "…"
