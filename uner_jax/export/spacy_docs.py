"""Documents of spaCy: every entity in `doc.spans["uner"]`, those that do not overlap in `doc.ents`."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from uner_jax.export.documents import Choices, Document, Survey
from uner_jax.export.losses import Loss, Losses
from uner_jax.export.tokens import Place, align
from uner_jax.extraction.spans import flat
from uner_jax.records import InputError, atomic_path

KEY = "uner"


def write(documents: Iterable[Document], survey: Survey, output: Path, choices: Choices, losses: Losses) -> None:
    """Write a DocBin, in which `doc.user_data["id"]` is the document's id."""
    nlp = blank(choices.language)
    from spacy.tokens import DocBin

    docs = DocBin(attrs=["ORTH", "SPACY", "ENT_IOB", "ENT_TYPE"], store_user_data=True)
    for doc in _docs(nlp, documents, choices, losses):
        docs.add(doc)
    with atomic_path(output) as temporary:
        temporary.write_bytes(docs.to_bytes())


def blank(language: str) -> Any:
    """spaCy's empty pipeline for a language. Raises InputError if spaCy or the language is missing."""
    try:
        import spacy
    except ImportError as error:
        raise InputError("spaCy is not installed: pip install 'uner-jax[spacy]'") from error
    try:
        return spacy.blank(language)
    except ImportError as error:
        raise InputError(f"--language {language!r}: {str(error).splitlines()[0]}") from error


def _docs(nlp: Any, documents: Iterable[Document], choices: Choices, losses: Losses) -> Iterator[Any]:
    from spacy.tokens import Doc, Span

    for document in documents:
        text = document.text
        own = [(token.idx, token.idx + len(token)) for token in nlp.make_doc(text)]
        places, placed = align(text, document.entities, own, choices.partial == "split", choices.flat, losses)
        doc = Doc(nlp.vocab, *_layout(text, places))
        doc.user_data["id"] = document.id
        spans = [Span(doc, first, last, label=entity["label"]) for first, last, entity in placed]
        kept = mark(doc, spans, [entity["score"] for _, _, entity in placed])
        losses[Loss.NOT_ENTS] += len(spans) - len(kept)
        yield doc


def _layout(text: str, places: Sequence[Place]) -> tuple[list[str], list[bool]]:
    """The words, and whether a space follows that no word holds."""
    followed = [end < then for (_, end), (then, _) in pairwise([*places, (len(text), len(text))])]
    return [text[start:end] for start, end in places], followed


def mark(doc: Any, spans: Sequence[Any], scores: Sequence[float], key: str = KEY) -> list[Any]:
    """Put spans and scores into `doc.spans`, and those that do not overlap into `doc.ents`; returns these.

    The scores are in the attributes of the group, as spaCy's own span categorizer has them. An entity that the
    document had already stays, and ours stand beside it where there is room.
    """
    from spacy.tokens import SpanGroup

    doc.spans[key] = SpanGroup(doc, name=key, spans=list(spans), attrs={"scores": np.asarray(scores, np.float64)})
    taken = {place for entity in doc.ents for place in range(entity.start, entity.end)}
    ranked = [
        {"start": span.start, "end": span.end, "label": span.label_, "score": score, "span": span}
        for span, score in zip(spans, scores, strict=True)
        if taken.isdisjoint(range(span.start, span.end))
    ]
    kept = [found["span"] for found in flat(ranked)]
    doc.set_ents([*doc.ents, *kept])
    return kept
