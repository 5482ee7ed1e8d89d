"""CoNLL-2003: a word a line in four columns, the last of them its BIO tag.

A blank line stands where the text has one (outside of entities), and `-DOCSTART-` before each document.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from uner_jax.export.documents import Choices, Document, Survey
from uner_jax.export.losses import Loss, Losses
from uner_jax.export.names import names
from uner_jax.export.output import text_file
from uner_jax.export.tokens import align, tags, words

SPACE = re.compile(r"\s+")
# readers take columns apart at any white space, and lines at any of these.
_PARAGRAPH = re.compile(r"(\r\n|[\n\r\x85\u2028\u2029])[^\S\n\r]*[\n\r\x85\u2028\u2029]|\u2029")


def write(documents: Iterable[Document], survey: Survey, output: Path, choices: Choices, losses: Losses) -> None:
    """Write all documents to one file."""
    name = names(survey.labels, SPACE)
    losses[Loss.RENAMED] += sum(label != short for label, short in name.items())
    with text_file(output) as file:
        for document in documents:
            file.write("-DOCSTART- -X- -X- O\n\n")
            file.writelines(_lines(document, name, choices, losses))


def _lines(document: Document, name: dict[str, str], choices: Choices, losses: Losses) -> Iterable[str]:
    text = document.text
    places, placed = align(text, document.entities, words(text), choices.partial == "split", True, losses)
    end = 0
    for (start, stop), (prefix, label) in zip(places, tags(len(places), placed), strict=True):
        if end and prefix != "I" and _PARAGRAPH.search(text, end, start):
            yield "\n"
        yield f"{text[start:stop]} -X- -X- {prefix}-{name[label]}\n" if label else f"{text[start:stop]} -X- -X- O\n"
        end = stop
    if places:
        yield "\n"
