"""The protocols by which a benchmark is scored; their numbers differ by points, so every report names them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from uner_jax.evaluation.rows import Row
from uner_jax.evaluation.scorers import (
    RELEASED_SMOOTHING,
    Counts,
    correct_counts,
    partial_counts,
    published_counts,
    score_of,
    span_counts,
    total,
)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a row is counted, in words too; `with_else` counts the questions for "else", which the others leave out."""

    words: str
    count: Callable[[Row], Counts]
    smoothing: float = 0.0
    with_else: bool = False


def _published(row: Row) -> Counts:
    return published_counts(row.prediction, row.question.gold)


def _correct(row: Row) -> Counts:
    return correct_counts(row.prediction, row.question.gold)


def _exact_span(row: Row) -> Counts:
    return span_counts(row.predicted_spans, row.gold_spans)


def _partial_span(row: Row) -> Counts:
    return partial_counts(row.predicted_spans, row.gold_spans)


PROTOCOLS = {
    "published": Protocol(
        "strings, normalised, each once a passage and type, as the released evaluator of UniversalNER reads and counts "
        "them; without the type else",
        _published,
        RELEASED_SMOOTHING,
    ),
    "published_with_else": Protocol(
        "the same with the questions for the type else, which some papers count", _published, RELEASED_SMOOTHING, True
    ),
    "correct": Protocol("the same strings, but no answer is lost in reading; without the type else", _correct),
    "exact_span": Protocol(
        "spans: start, end and type are those of the gold; an answer stands for all its occurrences in the passage, "
        "and so does a gold answer where the file has no offsets; without the type else",
        _exact_span,
    ),
    "partial_span": Protocol(
        "spans, where one that overlaps a gold span of its type is half right (SemEval-2013 task 9)", _partial_span
    ),
}


def counted_by(name: str, rows: Sequence[Row]) -> list[Row]:
    """The rows that a protocol counts; none for the one of the type else if nothing asks for it."""
    if not PROTOCOLS[name].with_else:
        return [row for row in rows if not row.question.is_else]
    return list(rows) if any(row.question.is_else for row in rows) else []


def score(name: str, rows: Sequence[Row]) -> dict[str, float] | None:
    """Precision, recall and F1 by a protocol; None if it counts none of the rows."""
    protocol, counted = PROTOCOLS[name], counted_by(name, rows)
    return score_of(total(map(protocol.count, counted)), protocol.smoothing) if counted else None


def scores(rows: Sequence[Row]) -> dict[str, Any]:
    """`score` by every protocol."""
    return {name: score(name, rows) for name in PROTOCOLS}
