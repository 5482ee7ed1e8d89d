"""The HTML page of extracted entities: one file that asks nothing of the network.

`page.html` is the frame, `page.css` owns the colours, `page.js` the filters. A policy in the page
forbids every request, and every script but `page.js`.
"""

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from string import Template

from uner_jax.extraction.record import check_extraction, read_extractions
from uner_jax.records import atomic_path
from uner_jax.view.markup import card, chip, count, escape, numbered


def write_page(source: str | os.PathLike, output: str | os.PathLike) -> int:
    """Write the page of the extraction records in `source`, a file or a directory of parts.

    Returns the number of documents. Raises InputError, naming file and line, for what is not an extraction record.
    """
    records = list(read_extractions(source))
    page = _document(records, Path(source).absolute().name)
    with atomic_path(output) as temporary:
        temporary.write_bytes(page.encode())
    return len(records)


def render_page(records: Iterable[dict], title: str = "Entities") -> str:
    """One HTML document of the extraction records; the same records give the same page.

    Raises InputError, naming the record by its number, for what is not an extraction record.
    """
    return _document([check_extraction(row, f"record {n}") for n, row in enumerate(records, 1)], title)


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
