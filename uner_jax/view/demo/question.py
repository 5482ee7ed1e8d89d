"""What a reader may ask at a time, and a request's body as a question."""

import dataclasses
import json
from typing import NamedTuple

from uner_jax.records import InputError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Code points of a text, types of a question, code points of a type, and texts that wait for their turn."""

    characters: int = 5000
    types: int = 20
    type_characters: int = 100
    waiting: int = 8

    @property
    def body_bytes(self) -> int:
        """The largest body that a question can need: JSON writes a code point with at most two escapes of 6 bytes."""
        return 12 * (self.characters + self.types * self.type_characters) + 4096


class Question(NamedTuple):
    """A text, and the entity types to look for."""

    text: str
    labels: list[str]


def read_question(body: bytes, limits: Limits) -> Question:
    """The question in a body of JSON, {"text": ..., "labels": [...]}; InputError says what is wrong with it."""
    try:
        fields = json.loads(body)
    # bytes that are no UTF-8, no JSON, an endless number, and ten thousand brackets.
    except (ValueError, RecursionError):
        raise InputError("the request is no JSON") from None
    if not isinstance(fields, dict):
        raise InputError('the request must be a JSON object with "text" and "labels"')
    return Question(_text(fields.get("text"), limits), _labels(fields.get("labels"), limits))


def _text(text: object, limits: Limits) -> str:
    if not isinstance(text, str):
        raise InputError('"text" must be a string')
    if not text.strip():
        raise InputError("There is no text yet: write or paste one.")
    if len(text) > limits.characters:
        raise InputError(
            f"The text has {len(text):,} characters, and the demo reads {limits.characters:,}: "
            "shorten it, start the demo with a larger --max-characters, or read it with uner extract."
        )
    return text


def _labels(labels: object, limits: Limits) -> list[str]:
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InputError('"labels" must be a list of strings')
    distinct = list(dict.fromkeys(label.strip() for label in labels if label.strip()))
    if not distinct:
        raise InputError("There is no entity type yet: add one, such as person.")
    if len(distinct) > limits.types:
        raise InputError(f"These are {len(distinct):,} entity types, and the demo looks for {limits.types} at a time.")
    longest = max(distinct, key=len)
    if len(longest) > limits.type_characters:
        raise InputError(
            f"The type {longest[:30]!r}… has {len(longest):,} characters; a type has {limits.type_characters} at most."
        )
    return distinct
