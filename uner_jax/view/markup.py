"""The HTML of one document and of one type.

A label is an attribute that the style sheet draws: the text nodes are the document alone, and so is
what a reader copies. Everything that comes from a record goes through `escape`.
"""

import unicodedata
import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from uner_jax.view.layout import lanes, segments

HUES = 12  # .c0 to .c11 in page.css
RULES = 4  # .r0 to .r3: solid, dashed, dotted, double
# a longer label is cut where it stands beside the text, for a phone's line; its tooltip has all of it.
LABEL_LENGTH = 32

# HTML cannot hold NUL or a lone surrogate, and reads a raw CR as LF.
_ESCAPES: dict[int, str] = dict.fromkeys([0, *range(0xD800, 0xE000)], "\ufffd")
_ESCAPES |= str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;", "\r": "&#13;"})


class Type(NamedTuple):
    """How the page refers to an entity type, and the classes of its colour."""

    number: int
    colour: str


def escape(text: str) -> str:
    """`text` for an HTML text node or a quoted attribute; NUL and lone surrogates become U+FFFD."""
    return text.translate(_ESCAPES)


def colours(labels: Iterable[str]) -> dict[str, str]:
    """The colour classes of each label: the hue that it hashes to, or another that is less used.

    So a type looks the same on every page, unless two types of a page want one hue. When all hues
    are in use they come again with another kind of underline.
    """
    uses = [0] * HUES
    classes = {}
    for label in sorted(labels):
        first = zlib.crc32(label.encode("utf-8", "surrogatepass"))
        # steps of 5 reach all 12 hues, and each lands far from the one before on the wheel.
        hue = min(((first + 5 * step) % HUES for step in range(HUES)), key=uses.__getitem__)
        classes[label] = f"c{hue} r{uses[hue] % RULES}"
        uses[hue] += 1
    return classes


def numbered(counts: Mapping[str, int]) -> dict[str, Type]:
    """The types of a page, the most frequent first."""
    colour = colours(counts)
    ranked = sorted(counts, key=lambda label: (-counts[label], label))
    return {label: Type(number, colour[label]) for number, label in enumerate(ranked)}


def chip(label: str, kind: Type, number: int) -> str:
    """The button that shows and hides a type."""
    return (
        f'<li><button type="button" class="chip {kind.colour}" aria-pressed="true" data-type="{kind.number}">'
        f'<span class="name">{escape(label) or "(no label)"}</span> <span class="number">{number:,}</span>'
        "</button></li>\n"
    )


def card(number: int, record: dict, types: Mapping[str, Type]) -> str:
    """The article of one checked extraction record, the `number`th of the page."""
    entities = record.get("entities") or []
    head = f'<h2><a class="id" href="#d{number}">{escape(record["id"]) or "(no id)"}</a></h2>'
    body = ""
    if record.get("source"):
        head += f'<span class="source">{escape(record["source"])}</span>'
    if record.get("error") is not None:
        body += f'<p class="error"><strong>Error</strong> <span>{escape(record["error"])}</span></p>'
    if record.get("text") is not None:
        head += f'<span class="size">{count(len(entities), "entity", "entities")}</span>'
        body += _marked_text(record["text"], entities, types)
    return f'<article id="d{number}"><div class="head">{head}</div>{body}</article>\n'


def count(number: int, one: str, many: str) -> str:
    """A number with its noun."""
    return f"<b>{number:,}</b> {one if number == 1 else many}"


def _marked_text(text: str, entities: list[dict], types: Mapping[str, Type]) -> str:
    depth = lanes(entities)
    parts = []
    for start, end, covering in segments(text, entities):
        for index in covering:
            entity = entities[index]
            place = " first" if start == entity["start"] else ""
            if end == entity["end"]:
                place += " last rtl" if _runs_leftwards(text, end) else " last"
            parts.append(_open_mark(index, entity, types[entity["label"]], depth[index], place))
        parts.append(escape(text[start:end]) + "</mark>" * len(covering))
    # lang="": the language is unknown, and no rule of English holds for it.
    return f'<div class="text" lang="" style="--lanes:{max(depth, default=0)}">{"".join(parts)}</div>'


def _runs_leftwards(text: str, end: int) -> bool:
    """Whether what stands before `end` in its paragraph runs from right to left: there goes the label."""
    for at in range(end - 1, -1, -1):
        direction = unicodedata.bidirectional(text[at])
        if direction in ("L", "R", "AL", "B"):
            return direction in ("R", "AL")
    return False


def _open_mark(index: int, entity: dict, kind: Type, lane: int, place: str) -> str:
    """The opening tag for the part of an entity in one segment; `place` says if it is the first or last."""
    label, score = entity["label"], f"{entity['score']:.2f}"
    short = label if len(label) <= LABEL_LENGTH else label[: LABEL_LENGTH - 1] + "…"
    title = f"{label} · {score} · {entity['start']}–{entity['end']}"
    return (
        f'<mark class="{kind.colour}{place}" style="--lane:{lane}" data-entity="{index}"'
        f' data-type="{kind.number}" data-score="{score}" data-label="{escape(short)}" title="{escape(title)}">'
    )
