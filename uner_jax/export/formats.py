"""The forms that extracted entities are exported to, and the way there: `export`."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from uner_jax.command import progress
from uner_jax.export import brat, conll, gliner, hugging_face, label_studio, prodigy, spacy_docs
from uner_jax.export.documents import Choices, Document, Survey, documents, survey
from uner_jax.export.losses import Losses, Tally
from uner_jax.records import InputError

Write = Callable[[Iterable[Document], Survey, Path, Choices, Losses], None]


class Format(NamedTuple):
    """A writer, the suffix that its output must have ("/" is a directory, "" any), and what has no place in it."""

    write: Write
    suffix: str
    without: str


FORMATS: dict[str, Format] = {
    "spacy": Format(spacy_docs.write, ".spacy", "labels without an entity"),
    "conll": Format(conll.write, "", "ids, scores, white space, labels without an entity"),
    "label-studio": Format(label_studio.write, ".json", ""),
    "brat": Format(brat.write, "/", ""),
    "prodigy": Format(prodigy.write, ".jsonl", "labels without an entity"),
    "hf": Format(hugging_face.write, "/", "scores, white space"),
    "gliner": Format(gliner.write, ".json", "scores, white space"),
}


def export(source: str | os.PathLike, to: str, output: str | os.PathLike, choices: Choices | None = None) -> Tally:
    """Write the extraction records of a file or a directory of parts in another form; returns what became of them.

    The input is read twice: a record that is wrong is found before anything is written. Raises InputError.
    """
    form, path = FORMATS[to], Path(output)
    if form.suffix not in ("", "/") and path.suffix != form.suffix:
        raise InputError(f"--output {path}: must end in {form.suffix} for --to {to}")
    choices = choices or Choices()
    found, tally = survey(source), Tally()
    rows = progress(documents(source, choices, tally), f"exporting to {to}", unit="documents")
    form.write(rows, found, path, choices, tally.losses)
    return tally
