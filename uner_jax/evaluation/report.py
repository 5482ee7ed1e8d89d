"""The numbers of a benchmark run, a data set at a time."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from uner_jax.evaluation.bootstrap import interval
from uner_jax.evaluation.errors import error_report
from uner_jax.evaluation.paper import paper_scores
from uner_jax.evaluation.protocols import PROTOCOLS, score, scores
from uner_jax.evaluation.rows import Row
from uner_jax.evaluation.scorers import published_parse


def by_dataset(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each data set, in the order of the run."""
    sets: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        sets[row.question.dataset].append(row)
    return dict(sets)


def dataset_report(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The scores of one data set by each protocol, their intervals, its types, errors, and what papers give."""
    return {
        "questions": len(rows),
        "passages": len({row.question.passage_turn for row in rows}),
        **scores(rows),
        "intervals": {protocol: interval(rows, protocol) for protocol in PROTOCOLS},
        "gold_offsets": all(row.question.spans is not None for row in rows),
        "empty_answers": sum(not row.answer.items for row in rows) / len(rows),
        "emptiness": _emptiness(rows),
        "lost_by_published_parser": sum(bool(row.answer.items) and not published_parse(row.prediction) for row in rows),
        "types": _types(rows),
        "errors": error_report(rows),
        "paper": paper_scores(name),
    }


def _emptiness(rows: Sequence[Row]) -> dict[str, float]:
    """Of the questions with and without gold entities, how many were answered with any."""
    negative = [row for row in rows if not row.gold.items]
    hallucinated = sum(bool(row.answer.items) for row in negative)
    positive = len(rows) - len(negative)
    answered = sum(bool(row.answer.items) for row in rows) - hallucinated
    return {
        "with_entities": positive,
        "with_entities_answered": answered,
        "without_entities": len(negative),
        "without_entities_answered": hallucinated,
        "hallucination_rate": hallucinated / len(negative) if negative else 0.0,
    }


def _types(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each type's own scores, the type with the most gold entities first."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.question.type].append(row)
    table = [
        {
            "type": name,
            "questions": len(group),
            "entities": sum(len(row.gold_spans) for row in group),
            "answered": sum(len(row.predicted_spans) for row in group),
            # of "else" too, which no other protocol counts.
            "published": score("published_with_else" if group[0].question.is_else else "published", group),
            "exact_span": None if group[0].question.is_else else score("exact_span", group),
        }
        for name, group in groups.items()
    ]
    return sorted(table, key=lambda line: (-line["entities"], line["type"]))


def mean_f1(datasets: dict[str, dict[str, Any]], protocol: str) -> float | None:
    """The mean over the data sets, as papers average; None if none of them has the protocol's rows.

    With the type else it is of all sets too: one without it counts as published. A set that asks for nothing but the
    type else has no part in the mean of the others.
    """
    if not any(report[protocol] for report in datasets.values()):
        return None
    found = [report[protocol] or report["published"] for report in datasets.values()]
    return sum(scores["f1"] for scores in found if scores) / sum(map(bool, found))
