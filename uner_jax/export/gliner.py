"""GLiNER's training data: words, and entities as [first word, last word, label], the last one included."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from uner_jax.export.documents import Choices, Document, Survey
from uner_jax.export.losses import Loss, Losses
from uner_jax.export.output import write_array
from uner_jax.export.tokens import align, words


def write(documents: Iterable[Document], survey: Survey, output: Path, choices: Choices, losses: Losses) -> None:
    """Write all documents as one JSON array."""
    write_array(output, _rows(documents, choices, losses))


def _rows(documents: Iterable[Document], choices: Choices, losses: Losses) -> Iterator[dict]:
    for document in documents:
        text = document.text
        places, placed = align(text, document.entities, words(text), choices.partial == "split", choices.flat, losses)
        if not places:
            losses[Loss.WORDLESS] += 1
            continue
        yield {
            "id": document.id,
            "tokenized_text": [text[start:stop] for start, stop in places],
            "ner": [[first, last - 1, entity["label"]] for first, last, entity in placed],
            # of which GLiNER draws labels that are not there.
            "ner_negatives": document.absent,
        }
