"""Passages with the spans of each type, from the teacher's labels and from published conversations alike."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from data_prep.questions.entity_types import normalize_definition, normalize_type
from uner_jax.records import InputError, check_conversation, check_label
from uner_jax.template import asked_type, passage_turn, question_turn

Variant = Literal["type", "definition"]

NORMALIZE: dict[Variant, Callable[[str], str]] = {"type": normalize_type, "definition": normalize_definition}
BEFORE_TEXT = passage_turn("")


@dataclass
class LabelledPassage:
    """A passage, and what one record or several say about it.

    `spans` has every type that the passage was said to have, and of its spans those that stand in the
    passage, each once, in the order of the record: none of them may. `absent` are the types that a record
    asks about and finds nothing of. `first_turn` is the passage as its conversation shows it.
    """

    id: str
    text: str
    first_turn: str
    spans: dict[str, list[str]] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    not_in_passage: int = 0
    source: str | None = None
    is_published: bool = False

    @property
    def key(self) -> int:
        """The same number for the same passage, 64 bits of a hash."""
        return digest(self.first_turn)

    @property
    def positives(self) -> dict[str, list[str]]:
        """The types with spans that stand in the passage."""
        return {name: spans for name, spans in self.spans.items() if spans}

    def add(self, name: str, spans: Iterable[str]) -> None:
        """Spans that a record gives to a type."""
        known = self.spans.setdefault(name, [])
        for span in spans:
            if not span.strip() or span not in self.text:
                self.not_in_passage += 1
            elif span not in known:
                known.append(span)

    def merge(self, other: "LabelledPassage") -> None:
        """Take what another record says about the same passage."""
        for name, spans in other.spans.items():
            self.add(name, spans)
        self.absent = (self.absent | other.absent).difference(self.spans)
        self.not_in_passage += other.not_in_passage
        self.source = self.source or other.source


def parse_record(row: Any, where: str, variant: Variant | None = None) -> LabelledPassage:
    """A label record or a published conversation as a passage.

    The names are types or definitions as a label's `teacher.variant` says, else as `variant` does.
    Raises InputError, with `where` and the field, for what is neither form.
    """
    if isinstance(row, dict) and row.get("conversations") is not None:
        return _parse_conversation(row, where, variant or "type")
    if isinstance(row, dict) and row.get("entities") is None and row.get("text") is None:
        raise InputError(
            f"{where}: neither a label record (id, text, entities) nor a conversation (id, conversations): "
            f"found the fields {', '.join(map(repr, row)) or 'of nothing'}"
        )
    return _parse_label(row, where, variant or "type")


def _parse_label(row: Any, where: str, variant: Variant) -> LabelledPassage:
    label = check_label(row, where)
    teacher, source = row.get("teacher"), row.get("source")
    if isinstance(teacher, dict) and teacher.get("variant") in ("type", "definition"):
        variant = teacher["variant"]
    passage = LabelledPassage(label["id"], label["text"], passage_turn(label["text"]))
    passage.source = source if isinstance(source, str) and source else None
    for entity in label["entities"]:
        passage.add(NORMALIZE[variant](entity["type"]), [entity["text"]])
    for name in _left_out_types(teacher):
        passage.add(NORMALIZE[variant](name), [])
    return passage


def _left_out_types(teacher: Any) -> list[str]:
    """The types of entities that the label step left out: the passage has them, though no span says where."""
    names = teacher.get("left_out_types") if isinstance(teacher, dict) else None
    return [name for name in names if isinstance(name, str) and name.strip()] if isinstance(names, list) else []


def _parse_conversation(row: Any, where: str, variant: Variant) -> LabelledPassage:
    turns = [turn["value"] for turn in check_conversation(row, where)["conversations"]]
    # a data set's name may stand before it: its types mean what they mean in that data set.
    dataset, found, text = turns[0].partition(BEFORE_TEXT)
    if not found or (dataset and passage_turn(text, _dataset_name(dataset)) != turns[0]):
        raise InputError(f'{where}: turn 0 must be "{BEFORE_TEXT}" and a passage, found {turns[0]!r:.80}')
    passage = LabelledPassage(row["id"], text, turns[0], is_published=True)
    for number in range(2, len(turns), 2):
        name = NORMALIZE[variant](_asked_type(turns[number], f"{where}: turn {number}"))
        spans = _answered_spans(turns[number + 1], f"{where}: turn {number + 1}")
        if spans:
            passage.add(name, spans)
        else:
            passage.absent.add(name)
    passage.absent.difference_update(passage.spans)
    return passage


def _dataset_name(before: str) -> str:
    opening, closing = passage_turn("", "\0").removesuffix(BEFORE_TEXT).split("\0")
    return before.removeprefix(opening).removesuffix(closing)


def _asked_type(question: str, where: str) -> str:
    name = asked_type(question)
    if name is None:
        raise InputError(f'{where} must be "{question_turn("TYPE")}" with a type\'s name, found {question!r:.120}')
    return name


def _answered_spans(answer: str, where: str) -> list[str]:
    try:
        spans = json.loads(answer)
    except ValueError as error:
        raise InputError(f"{where} must be a JSON list of strings, found {answer!r:.120} ({error})") from error
    if not (isinstance(spans, list) and all(isinstance(span, str) for span in spans)):
        raise InputError(f"{where} must be a JSON list of strings, found {answer!r:.120}")
    return spans


def digest(text: str) -> int:
    """64 bits of a hash of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
