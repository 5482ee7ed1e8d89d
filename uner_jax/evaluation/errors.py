"""What kinds of errors there are: wrong boundary, wrong type, missed, invented, unparsable."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from uner_jax.evaluation.rows import Row

KINDS = {
    "wrong_boundary": "overlaps a gold entity of its type, and is not one",
    "wrong_type": "overlaps gold entities of other types only",
    "invented": "overlaps no gold entity, or does not stand in the passage",
    "missed": "a gold entity that was not answered, and that no wrong answer overlaps",
    "unparsable": "an answer that is no whole list",
}
EXAMPLES = 3
CONFUSIONS = 20
SHOWN = 160  # characters of a passage in an example


class Error(NamedTuple):
    """An error, the type that was asked for, what was answered or missed, and what the gold has there."""

    kind: str
    type: str
    text: str
    gold: list[dict[str, str]]
    passage: str


class _Gold(NamedTuple):
    start: int
    end: int
    type: str

    def overlaps(self, start: int, end: int) -> bool:
        return self.start < end and start < self.end


def find_errors(rows: Sequence[Row]) -> Iterator[Error]:
    """The errors of a data set's rows, passage by passage."""
    for asked in _passages(rows):
        gold = [_Gold(*span, row.question.type) for row in asked for span in sorted(row.gold_spans)]
        wrong = [span for row in asked for span in row.predicted_spans - row.gold_spans]
        for row in asked:
            yield from _of_answer(row, gold)
            for start, end in sorted(row.gold_spans - row.predicted_spans):
                if not any(_Gold(start, end, "").overlaps(*span) for span in wrong):
                    yield _error("missed", row, row.question.text[start:end], [])


def _of_answer(row: Row, gold: Sequence[_Gold]) -> Iterator[Error]:
    if not row.answer.complete:
        yield _error("unparsable", row, row.prediction, [])
    for text in row.invented:
        yield _error("invented", row, text, [])
    for start, end in sorted(row.predicted_spans - row.gold_spans):
        touched = [one for one in gold if one.overlaps(start, end)]
        same = [one for one in touched if one.type == row.question.type]
        kind = "wrong_boundary" if same else "wrong_type" if touched else "invented"
        yield _error(kind, row, row.question.text[start:end], same or touched)


def _error(kind: str, row: Row, found: str, gold: Sequence[_Gold]) -> Error:
    text = row.question.text
    there = [{"text": text[one.start : one.end], "type": one.type} for one in gold]
    return Error(kind, row.question.type, found, there, text)


def _passages(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of each passage, whatever their order; a question that comes again on it is of a passage of its own."""
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    times: Counter[tuple[str, str]] = Counter()
    for row in sorted(rows, key=_place):
        key = row.question.passage_turn, row.question.question
        groups[key[0], times[key]].append(row)
        times[key] += 1
    yield from groups.values()


def _place(row: Row) -> tuple[str, ...]:
    asked = row.question
    return asked.passage_turn, asked.question, row.prediction, asked.gold


def error_report(rows: Sequence[Row]) -> dict[str, Any]:
    """How many errors of each kind, which types are taken for which, and examples."""
    kinds: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    confused: Counter[tuple[str, str]] = Counter()
    examples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for error in find_errors(rows):
        kinds[error.kind] += 1
        if error.kind == "wrong_type":
            confused.update((one["type"], error.type) for one in error.gold)
        if len(examples[error.kind]) < EXAMPLES:
            examples[error.kind].append(error._asdict() | {"passage": error.passage[:SHOWN]})
    ranked = sorted(confused.items(), key=lambda pair: (-pair[1], pair[0]))[:CONFUSIONS]
    return {
        "kinds": dict(kinds),
        "confused_types": [{"gold": gold, "answered": answered, "count": count} for (gold, answered), count in ranked],
        "examples": {kind: examples[kind] for kind in KINDS if examples[kind]},
    }
