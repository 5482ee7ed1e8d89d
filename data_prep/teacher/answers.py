r"""Reading what a teacher answered: (span, type) pairs, none of them invented and no code evaluated.

Teachers are asked for a Python list of tuples and answer with that, with JSON of many shapes, in fences and prose,
with quotes inside their strings, and cut off. Valid JSON is read as such, all else by the scanner; both give the same
tree, and what is ambiguous in it makes no pair.
"""

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.teacher.scanner import MAX_DEPTH, QUOTES, Bare, Group, TooDeepError, scan

MAX_CHARACTERS = 1_000_000

# The names that teachers give to the two halves of a pair, without case, spaces and underscores; the first that an
# object has counts.
SPAN_KEYS = (
    *("text", "span", "mention", "entity", "entitytext", "entityname", "entitymention", "name", "word", "phrase"),
    *("surface", "surfaceform", "term", "concept", "value"),
)
TYPE_KEYS = (
    *("type", "entitytype", "typeofentity", "label", "entitylabel", "category", "class", "tag", "kind"),
    *("definition", "typedefinition", "definitionofentitytype", "entitydefinition", "description"),
)
# "entities": ["Paris"] says nothing about the type.
NO_TYPE_KEYS = {
    *("entity", "entities", "namedentities", "extractedentities", "ner", "output", "outputs", "answer", "answers"),
    *("result", "results", "response", "extraction", "extractions", "spans", "mentions", "texts", "tokens", "words"),
    *("types", "labels", "entitytypes", "pairs", "tuples", "items", "passage", "passages", "paragraph", "sentences"),
}
MENTIONS_KEYS = ("entities", "spans", "mentions", "texts", "names", "values", "examples", "instances", "items")

_NUMBER = re.compile(r"[-+]?(?:\d[\d_.]*|\.\d+)(?:[eE][-+]?\d+)?%?")
_CONSTANTS = {"None", "True", "False", "null", "true", "false", "NaN", "nan", "Infinity", "-Infinity", "inf"}
# Quotes as entities of HTML, where a string would begin.
_HTML_OPENING = re.compile(r"[\[({,:]\s*+&(?:quot|apos|#0{0,4}3[49]|#x0{0,4}2[27]|[lr][ds]quo);", re.IGNORECASE)
_PLAIN_OPENING = re.compile(rf"[\[({{,:]\s*+[{QUOTES}]")


@dataclass(frozen=True)
class Answer:
    """What an answer says.

    `pairs` are (span, type), in order, each once. `cut`: a list has no end; the whole pairs before it are kept.
    `problem` says why there are none: "empty", "too_long", "too_deep", "no_list", or "no_pairs" if there is a list but
    nothing in it can be read as a pair; an empty list is no problem. `unread` counts the items of the lists that
    make no pair.
    """

    pairs: list[tuple[str, str]]
    cut: bool = False
    problem: str | None = None
    unread: int = 0


def parse_answer(content: str) -> Answer:
    r"""The (span, type) pairs of a teacher's answer. Never raises, and takes time linear in its length.

    Every list, object and line of tuples in it is read, whatever stands around it: pairs as tuples or lists of two,
    objects with a text and a type, objects from types to lists of spans. A third item is passed over; a number or None
    in the place of a span or type makes no pair, nor does a list of spans without types.
    Escapes are undone as JSON and Python have them; a backslash that escapes nothing is itself.
    """
    content = content.strip("\ufeff \t\r\n")
    if not content:
        return Answer([], problem="empty")
    if len(content) > MAX_CHARACTERS:
        return Answer([], problem="too_long")
    try:
        groups, cut = _load(content)
        pairs, unread = _read_pairs(groups)
    except TooDeepError:
        return Answer([], problem="too_deep")
    pairs = list(dict.fromkeys(pairs))
    problem = None
    if not groups:
        problem = "no_list"
    elif not pairs and (unread or cut):
        problem = "no_pairs"
    return Answer(pairs, cut, problem, unread)


def _load(content: str) -> tuple[list[Group], bool]:
    """The outermost groups of an answer, and whether the last is cut off."""
    try:
        value = json.loads(
            content,
            strict=False,
            # numbers stay text: a long one would be an error, and none is a span.
            parse_int=Bare,
            parse_float=Bare,
            parse_constant=Bare,
            # not a dict: a type may come twice.
            object_pairs_hook=lambda entries: Group("{", entries=entries),
        )
    except json.JSONDecodeError:
        if _HTML_OPENING.search(content) and not _PLAIN_OPENING.search(content):
            content = html.unescape(content)
        return scan(content)
    except RecursionError as error:
        raise TooDeepError from error
    value = _as_group(value)
    return ([value] if isinstance(value, Group) else []), False


def _read_pairs(roots: list[Group]) -> tuple[list[tuple[str, str]], int]:
    """The pairs of the groups, and how many groups held something but no pair."""
    pairs: list[tuple[str, str]] = []
    unread = 0
    pending = [_Place(root) for root in reversed(roots)]
    while pending:
        place = pending.pop()
        if place.depth > MAX_DEPTH:
            raise TooDeepError
        found = _pairs_at(place)
        pairs += found
        if found and place.group.kind == "{":
            continue
        inner = list(_inner_places(place))
        unread += not found and not inner and bool(place.group.items or place.group.entries)
        pending.extend(reversed(inner))
    return pairs, unread


@dataclass(frozen=True, slots=True)
class _Place:
    """A group, the kind of the group it is in, and the key of which it is the value: "" if that names no type."""

    group: Group
    parent: str = ""
    key: str | None = None
    depth: int = 1


def _inner_places(place: _Place) -> Iterator[_Place]:
    """The groups in a group, but for those that belong to a string beside them: ("Paris", ["city", "capital"])."""
    group = place.group
    items = [item for item in map(_as_group, group.items) if isinstance(item, Group)]
    strings = sum(isinstance(item, str) for item in group.items)
    # a stray string in a list of tuples, or a tuple of two strings of which the bracket was forgotten.
    is_list = group.kind == "[" and (len(items) > 1 or not place.parent)
    for item in items:
        if strings == 0 or (item.kind == "(" and (is_list or (group.kind == "(" and strings > 1))):
            yield _Place(item, group.kind, None, place.depth + 1)
    is_mapping = bool(group.entries) and _is_mapping(group)
    for key, value in group.entries:
        item = _as_group(value)
        if isinstance(item, Group):
            yield _Place(item, group.kind, key if is_mapping else "", place.depth + 1)


def _as_group(item: Any) -> Any:
    """The lists of valid JSON are plain ones."""
    return Group("[", item) if isinstance(item, list) else item


def _pairs_at(place: _Place) -> list[tuple[str, str]]:
    """The pairs that the group itself makes, without those of groups inside it."""
    group = place.group
    if group.spoiled:
        return []
    if group.kind == "{":
        return _pairs_of_object(group)
    if place.key is not None:
        return _pairs_of_type(group, place.key)
    # a list of two strings alone may as well be two spans.
    if group.cut or not (place.parent or group.kind == "("):
        return []
    return _pair(group, bare_allowed=place.parent == "[" and group.kind == "(")


def _pair(group: Group, bare_allowed: bool) -> list[tuple[str, str]]:
    """The pair of a tuple's first two items; of more than two, none may be in doubt, and one may be text."""
    if len(group.items) < 2:
        return []
    span, type_name, *more = group.items
    if more and (group.doubtful or sum(not _is_constant(item) for item in more) > 1):
        return []
    if isinstance(span, str) and isinstance(type_name, str):
        return [(span, type_name)]
    if more or not bare_allowed or _is_constant(type_name):
        return []
    # a bare number is the span of a teacher that quotes nothing, and the number of the item otherwise.
    if _is_constant(span) and not (_is_number(span) and isinstance(type_name, Bare)):
        return []
    return [(_text(span), _text(type_name))]


def _text(item: str | Bare) -> str:
    return item.text if isinstance(item, Bare) else item


def _is_constant(item: Any) -> bool:
    """True for a number, None and the like: whatever is neither a string nor a word."""
    if isinstance(item, Bare):
        return item.text in _CONSTANTS or _is_number(item)
    return not isinstance(item, str)


def _is_number(item: Any) -> bool:
    return isinstance(item, Bare) and _NUMBER.fullmatch(item.text) is not None


def _pairs_of_type(group: Group, key: str) -> list[tuple[str, str]]:
    """The pairs of {"type": ["span", ...]}."""
    if group.kind != "[" or group.doubtful or any(isinstance(item, list | Group) for item in group.items):
        return []
    if not _plain_key(key) or _plain_key(key) in NO_TYPE_KEYS:
        return []
    return [(item, key) for item in group.items if isinstance(item, str)]


def _plain_key(key: str) -> str:
    return "".join(char for char in key.lower() if char.isalpha())


def _is_mapping(group: Group) -> bool:
    """False for the record of one entity, and for a table by columns: their keys name fields, not types."""
    fields = {_plain_key(key): _as_group(value) for key, value in group.entries}
    if any(isinstance(fields.get(key), str) for key in (*SPAN_KEYS, *TYPE_KEYS)):
        return False
    lengths = {key: len(value.items) for key, value in fields.items() if isinstance(value, Group) and value.items}
    spans, types, others = (
        {length for key, length in lengths.items() if key in keys}
        for keys in (SPAN_KEYS, TYPE_KEYS, lengths.keys() - NO_TYPE_KEYS)
    )
    tables = {length for key, length in lengths.items() if key in NO_TYPE_KEYS}
    return not (spans & types or others & tables)


def _pairs_of_object(group: Group) -> list[tuple[str, str]]:
    """The pairs of {"text": "span", "type": "type"} and {"type": "type", "entities": ["span", ...]}."""
    fields: dict[str, Any] = {}
    for key, value in group.entries:
        fields.setdefault(_plain_key(key), value)
    type_name = next((fields[key] for key in TYPE_KEYS if isinstance(fields.get(key), str)), None)
    if type_name is None:
        return []
    spans = {fields[key] for key in SPAN_KEYS if isinstance(fields.get(key), str)}
    if spans:
        # of two that differ either may be the entity.
        return [(span, type_name) for span in spans] if len(spans) == 1 and not group.cut else []
    mentions = _as_group(next((fields[key] for key in MENTIONS_KEYS if key in fields), None))
    if not isinstance(mentions, Group) or mentions.kind != "[" or mentions.doubtful or mentions.spoiled:
        return []
    return [(item, type_name) for item in mentions.items if isinstance(item, str)]
