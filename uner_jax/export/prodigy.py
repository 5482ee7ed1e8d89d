"""Prodigy's tasks: text, tokens as spaCy has them, and spans, for `spans.manual` or, flat, `ner.manual`."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from uner_jax.export.documents import Choices, Document, Survey
from uner_jax.export.losses import Losses
from uner_jax.export.tokens import Place, Placed, align, with_spaces, words
from uner_jax.records import write_rows


def write(documents: Iterable[Document], survey: Survey, output: Path, choices: Choices, losses: Losses) -> None:
    """Write a task a line."""
    write_rows(output, _tasks(documents, choices, losses))


def _tasks(documents: Iterable[Document], choices: Choices, losses: Losses) -> Iterator[dict]:
    for document in documents:
        text = document.text
        every = with_spaces(words(text), text)
        places, placed = align(text, document.entities, every, choices.partial == "split", choices.flat, losses)
        yield {
            "text": text,
            "meta": {"id": document.id},
            "tokens": [_token(text, number, place) for number, place in enumerate(places)],
            "spans": [_span(span) for span in placed],
        }


def _token(text: str, number: int, place: Place) -> dict:
    start, end = place
    followed = text[end : end + 1] == " " and not text[start].isspace()
    return {"id": number, "text": text[start:end], "start": start, "end": end, "ws": followed}


def _span(placed: Placed) -> dict:
    entity = placed.entity
    return {
        "start": entity["start"],
        "end": entity["end"],
        "label": entity["label"],
        "token_start": placed.first,
        # the last token, included.
        "token_end": placed.last - 1,
        "score": entity["score"],
    }
