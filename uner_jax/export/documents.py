"""Extraction records on their way into another form: what of them is exported, and how it is counted."""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from uner_jax.export.losses import Loss, Losses, Tally
from uner_jax.extraction.record import read_extractions
from uner_jax.extraction.spans import flat
from uner_jax.records import InputError

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Choices:
    """What the user decides.

    `flat`: no two entities overlap, also where the form could hold them. `partial`: a word that an entity cuts is
    split, or the entity dropped. `min_score`: from 0 to 1. `language`: spaCy's code, for its tokenizer.
    """

    flat: bool = False
    partial: Literal["split", "drop"] = "split"
    min_score: float = 0.0
    language: str = "xx"

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise InputError(f"--min-score {self.min_score} must be from 0 to 1")


class Document(NamedTuple):
    """A record without an error; `absent` are the labels that were asked for and found nothing, however unsure."""

    id: str
    text: str
    absent: list[str]
    entities: list[dict]


class Survey(NamedTuple):
    """What the whole input holds: every label that was asked for or found, sorted."""

    labels: list[str]


def survey(source: str | os.PathLike) -> Survey:
    """Read all records once, check them, and gather what a form says once for all. Raises InputError."""
    labels: set[str] = set()
    for record in read_extractions(source):
        if record.get("error") is None:
            labels.update(_asked(record), (entity["label"] for entity in record["entities"]))
    return Survey(sorted({_clean(label) for label in labels if label.strip()}))


def documents(source: str | os.PathLike, choices: Choices, tally: Tally) -> Iterator[Document]:
    """The documents of a file or a directory of parts, with the entities that are exported."""
    losses = tally.losses
    for record in read_extractions(source):
        if record.get("error") is not None:
            losses[Loss.FAILED] += 1
            continue
        tally.documents += 1
        tally.entities += len(record["entities"])
        losses[Loss.SURROGATE] += len(_SURROGATE.findall(record["text"]))
        kept = list(_kept(record["entities"], choices, losses))
        if choices.flat:
            losses[Loss.OVERLAP] += len(kept) - len(kept := flat(kept))
        yield Document(_clean(record["id"]), _clean(record["text"]), _absent(record), kept)


def _asked(record: dict) -> list[str]:
    return [label for label in record.get("labels") or [] if isinstance(label, str)]


def _absent(record: dict) -> list[str]:
    found = {entity["label"] for entity in record["entities"]}
    return [_clean(label) for label in dict.fromkeys(_asked(record)) if label not in found]


def _kept(entities: Iterable[dict], choices: Choices, losses: Losses) -> Iterator[dict]:
    for entity in entities:
        if entity["score"] < choices.min_score:
            losses[Loss.UNSURE] += 1
        elif not entity["label"].strip():
            losses[Loss.UNLABELLED] += 1
        else:
            yield entity | {"text": _clean(entity["text"]), "label": _clean(entity["label"])}


def _clean(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot hold; as many code points as before."""
    return _SURROGATE.sub("\ufffd", text)
