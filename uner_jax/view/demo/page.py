"""What the demo shows: its page, and the answer to a question.

The page is one document, and its policy allows it one thing: to ask the server that it came from.
It shares `page.css` and the marks with the page of `uner view`; `demo.css` and `demo.js` add the rest.
"""

import base64
import dataclasses
import hashlib
import json
from collections import Counter
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

from uner_jax.extraction.extractor import Extraction
from uner_jax.view.demo.question import Limits, Question
from uner_jax.view.markup import Type, card, escape, numbered
from uner_jax.view.remarks import remarks

_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Page(NamedTuple):
    """The document, and the Content-Security-Policy that it is sent with."""

    html: str
    policy: str


def demo_page(model: str, limits: Limits) -> Page:
    """The page of the demo for a model of that name."""
    script = _part("uner_jax.view.demo", "demo.js")
    examples = json.loads(_part("uner_jax.view.demo", "examples.json"))
    setup = json.dumps({"examples": examples, "limits": dataclasses.asdict(limits)})
    html = Template(_part("uner_jax.view.demo", "demo.html")).substitute(
        model=escape(model),
        characters=f"{limits.characters:,}",
        style=_part("uner_jax.view", "page.css") + _part("uner_jax.view.demo", "demo.css"),
        # no "</script>" in an example may end the element.
        setup=setup.replace("<", "\\u003c"),
        script=script,
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Page(html, _POLICY.format(script=digest))


def answer(question: Question, found: Extraction, seconds: float) -> dict[str, Any]:
    """The answer to a question, for programs and, as "types" and "html", for the page."""
    counts = Counter(dict.fromkeys(question.labels, 0))
    counts.update(entity["label"] for entity in found.entities)
    types = numbered(counts)
    source = " · ".join([f"{seconds:.1f} s", *remarks(found)])
    record = {"id": "Result", "text": question.text, "source": source, "entities": found.entities}
    return {
        "labels": question.labels,
        "entities": found.entities,
        "chunks": found.chunks,
        "ungrounded": found.ungrounded,
        "cut": found.cut,
        "seconds": round(seconds, 3),
        "types": [{"label": x, "colour": types[x].colour, "count": counts[x]} for x in question.labels],
        "html": card(1, record, types) + _table(found.entities, types),
    }


def _table(entities: list[Any], types: dict[str, Type]) -> str:
    if not entities:
        return ""
    rows = [
        f'<tr><td class="type {types[entity["label"]].colour}">{escape(entity["label"])}</td>'
        f'<td class="found" lang="">{escape(entity["text"])}</td><td class="digits">{entity["score"]:.2f}</td>'
        f'<td class="digits">{entity["start"]}–{entity["end"]}</td></tr>\n'
        for entity in entities
    ]
    head = '<tr><th>type</th><th>text</th><th class="digits">score</th><th class="digits">offsets</th></tr>'
    return f'<table class="entities"><thead>{head}</thead><tbody>\n{"".join(rows)}</tbody></table>\n'


def _part(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
