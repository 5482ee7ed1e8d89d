"""brat's standoff: `.txt` and `.ann` for each document, offsets in code points, nothing of the text changed.

A line of `.ann` cannot hold a line break: an entity that has one is written in fragments, as brat has them.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from uner_jax.export.documents import Choices, Document, Survey
from uner_jax.export.losses import Loss, Losses
from uner_jax.export.names import names
from uner_jax.export.output import directory
from uner_jax.records import write_rows

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_-]+")
# brat reads lines as Python's splitlines does; a tab ends a field.
_UNBROKEN = re.compile(r"[^\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")


def write(documents: Iterable[Document], survey: Survey, output: Path, choices: Choices, losses: Losses) -> None:
    """Write a directory of pairs, brat's configuration, and `documents.jsonl`, which has the id of each file."""
    name = names(survey.labels, _FORBIDDEN)
    losses[Loss.RENAMED] += sum(label != short for label, short in name.items())
    with directory(output) as path:
        write_rows(path / "documents.jsonl", _pairs(path, documents, name, losses))
        _write(path / "annotation.conf", _configuration(name.values()))
        shown = [f"{short} | {_one_field(label)}\n" for label, short in name.items()]
        _write(path / "visual.conf", "".join(["[labels]\n", *shown]))


def _pairs(path: Path, documents: Iterable[Document], name: dict[str, str], losses: Losses) -> Iterator[dict]:
    for number, document in enumerate(documents, 1):
        stem = f"{number:06d}-{_FORBIDDEN.sub('_', document.id)[:80]}".rstrip("-")
        _write(path / f"{stem}.txt", document.text)
        _write(path / f"{stem}.ann", "".join(_annotations(document, name, losses)))
        yield {"file": stem, "id": document.id}


def _annotations(document: Document, name: dict[str, str], losses: Losses) -> Iterator[str]:
    number = 0
    for entity in document.entities:
        pieces = list(_UNBROKEN.finditer(document.text, entity["start"], entity["end"]))
        if not any(piece[0].strip() for piece in pieces):
            losses[Loss.BLANK] += 1
            continue
        number += 1
        losses[Loss.FRAGMENTED] += len(pieces) > 1
        losses[Loss.TRIMMED] += (pieces[0].start(), pieces[-1].end()) != (entity["start"], entity["end"])
        places = ";".join(f"{piece.start()} {piece.end()}" for piece in pieces)
        written = " ".join(piece[0] for piece in pieces)
        yield f"T{number}\t{name[entity['label']]} {places}\t{written}\n"
        # JSON in ASCII: it has no line break and no tab.
        known = json.dumps({"score": entity["score"], "label": entity["label"]})
        yield f"#{number}\tAnnotatorNotes T{number}\t{known}\n"


def _configuration(types: Iterable[str]) -> str:
    overlaps = "<OVERLAP> Arg1:<ENTITY>, Arg2:<ENTITY>, <OVL-TYPE>:<ANY>"
    return "\n".join(["[entities]", *types, "[relations]", overlaps, "[events]", "[attributes]", ""])


def _one_field(label: str) -> str:
    return " ".join(label.replace("|", "/").split())


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8"))
