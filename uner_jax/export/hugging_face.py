"""Hugging Face token classification: a directory that `datasets.load_dataset` reads, with the names of its tags."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from uner_jax.export.documents import Choices, Document, Survey
from uner_jax.export.losses import Losses
from uner_jax.export.output import directory
from uner_jax.export.tokens import align, tags, words
from uner_jax.records import write_json, write_rows

CARD = """---
task_categories:
- token-classification
configs:
- config_name: default
  data_files: train.jsonl
dataset_info:
  features:
  - name: id
    dtype: string
  - name: tokens
    sequence: string
  - name: ner_tags
    sequence:
      class_label:
        names:
{names}
---
Entities found by uner_jax: words, and their BIO tags as numbers into the list of labels.json.
"""


def write(documents: Iterable[Document], survey: Survey, output: Path, choices: Choices, losses: Losses) -> None:
    """Write train.jsonl, labels.json (the list of tags) and the card that tells `datasets` of them."""
    tag_names = ["O", *(f"{prefix}-{label}" for label in survey.labels for prefix in "BI")]
    number = {name: place for place, name in enumerate(tag_names)}
    with directory(output) as path:
        write_rows(path / "train.jsonl", _rows(documents, number, choices, losses))
        write_json(path / "labels.json", tag_names)
        lines = "\n".join(f"          '{place}': {_yaml(name)}" for place, name in enumerate(tag_names))
        (path / "README.md").write_text(CARD.format(names=lines), encoding="utf-8")


def _rows(documents: Iterable[Document], number: dict[str, int], choices: Choices, losses: Losses) -> Iterator[dict]:
    for document in documents:
        text = document.text
        places, placed = align(text, document.entities, words(text), choices.partial == "split", True, losses)
        numbers = [number[f"{prefix}-{label}" if label else "O"] for prefix, label in tags(len(places), placed)]
        yield {"id": document.id, "tokens": [text[start:stop] for start, stop in places], "ner_tags": numbers}


def _yaml(text: str) -> str:
    """A quoted string of YAML, in ASCII: unlike JSON, YAML has one escape for a letter beyond U+FFFF."""
    return "".join(json.dumps(letter)[1:-1] if letter < "\x7f" else f"\\U{ord(letter):08x}" for letter in text).join(
        '""'
    )
