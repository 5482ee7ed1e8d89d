"""The HTML page of extracted entities: one file that asks nothing of the network.

`page.html` is the frame, `page.css` owns the colours, `page.js` the filters. A policy in the page
forbids every request, and every script but `page.js`.
"""

import base64
import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from uner_jax.records import InputError, atomic_path, read_rows
from uner_jax.view.markup import card, chip, count, escape, numbered


def write_page(source: str | os.PathLike, output: str | os.PathLike) -> int:
    """Write the page of the extraction records in the file `source`; returns the number of documents.

    Raises InputError, naming file and line, for what is not an extraction record.
    """
    records = [check_extraction(row, where) for where, row in read_rows(source)]
    page = _document(records, Path(source).name)
    with atomic_path(output) as temporary:
        temporary.write_bytes(page.encode())
    return len(records)


def render_page(records: Iterable[dict], title: str = "Entities") -> str:
    """One HTML document of the extraction records; the same records give the same page.

    Raises InputError, naming the record by its number, for what is not an extraction record.
    """
    return _document([check_extraction(row, f"record {n}") for n, row in enumerate(records, 1)], title)


def check_extraction(row: Any, where: str) -> dict:
    """The row as an extraction record; InputError names the field that is wrong.

    A record with an error may lack its text and its entities; no other may.
    """
    if not isinstance(row, dict):
        raise InputError(f"{where}: an extraction record must be a JSON object, found {row!r:.80}")
    _check_field(row, "id", "a string", str, where)
    _check_field(row, "source", "a string", str | None, where)
    _check_field(row, "error", "a string or null", str | None, where)
    failed = row.get("error") is not None
    _check_field(row, "text", "a string", str | None if failed else str, where)
    _check_field(row, "entities", "a list", list | None if failed else list, where)
    for number, entity in enumerate(row.get("entities") or []):
        _check_entity(entity, row.get("text") or "", f"{where}: entity {number}")
    return row


def _check_entity(entity: Any, text: str, where: str) -> None:
    if not isinstance(entity, dict):
        raise InputError(f"{where}: must be a JSON object, found {entity!r:.80}")
    for name in ("text", "label"):
        _check_field(entity, name, "a string", str, where)
    for name in ("start", "end"):
        _check_field(entity, name, "an integer", int, where)
    _check_field(entity, "score", "a number", int | float, where)
    start, end, score = entity["start"], entity["end"], entity["score"]
    if not 0 <= start < end <= len(text):
        raise InputError(f"{where}: {start} to {end} is no span in a text of {len(text)} code points")
    if text[start:end] != entity["text"]:
        found = f"the text has {text[start:end]!r:.80} there, the entity {entity['text']!r:.80}"
        raise InputError(f"{where}: {start} to {end}: {found}; offsets count code points, end exclusive")
    if not (math.isfinite(score) and 0 <= score <= 1):
        raise InputError(f'{where}: "score" must be from 0 to 1, found {score!r}')


def _check_field(row: dict, name: str, expected: str, kind: Any, where: str) -> None:
    value = row.get(name)
    # True is an int to Python, but neither an offset nor a score.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f'{where}: "{name}" must be {expected}, found {value!r:.80}')


def _document(records: list[dict], title: str) -> str:
    counts = Counter(entity["label"] for record in records for entity in record.get("entities") or [])
    types = numbered(counts)
    cards = [card(number, record, types) for number, record in enumerate(records, 1)]
    script = _part("page.js")
    return Template(_part("page.html")).substitute(
        title=escape(title),
        facts="".join(f"<li>{fact}</li>" for fact in _facts(records, counts)),
        chips="".join(chip(label, kind, counts[label]) for label, kind in types.items()),
        cards="".join(cards) or '<p class="empty">There are no documents.</p>',
        style=_part("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _facts(records: list[dict], counts: Counter[str]) -> list[str]:
    failed = sum(record.get("error") is not None for record in records)
    facts = [
        count(len(records), "document", "documents"),
        count(counts.total(), "entity", "entities"),
        count(len(counts), "type", "types"),
    ]
    return [*facts, count(failed, "error", "errors")] if failed else facts


def _part(name: str) -> str:
    return files("uner_jax.view").joinpath(name).read_text(encoding="utf-8")
