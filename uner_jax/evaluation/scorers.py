"""Strict entity-level micro precision, recall and F1: as published, and as they should be.

`published_*` repeats the released evaluator (universal-ner/universal-ner, `src/eval/evaluate.py`;
arXiv 2308.03279, section 5) to the last bit, for numbers that stand beside the paper's.
`correct_score` counts the same way but loses no answer, and `exact_span_score` counts spans by
position. All count per row (`Counts`) and add up the rows; all return floats "precision", "recall", "f1".
"""

import json
import re
import string
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import NamedTuple

from uner_jax.extraction.answers import parse_answer

Span = tuple[int, int, str]

_FIRST_LIST = re.compile(r"\[.*?\]")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The released evaluator adds it to every denominator: its best score is 0.99999999995, not 1.
RELEASED_SMOOTHING = 1e-10


class Counts(NamedTuple):
    """What a row or many rows have: entities that are right, that were answered, and that the gold has."""

    correct: float
    predicted: float
    expected: float


def normalize_answer(text: str) -> str:
    """Lower-case, without ASCII punctuation and the words a, an, the; white space squeezed to single spaces.

    The normalisation of the released evaluator, taken from SQuAD's. Punctuation goes first and leaves
    no gap ("Jean-Luc" is "jeanluc", "C++" is "c"), and a text of nothing else ("A", "!!!") becomes "".
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def published_parse(text: str) -> list[str]:
    """What the released `parser` makes of an answer: its normalised strings, each once, in order.

    It reads from the first character to the first `]` on the same line, and gives `[]` if that is no
    JSON list of strings: so for `]` inside a string, a newline, leading text, a cut list, or one
    item that is no string. An empty string is kept, as an entity "".
    """
    found = _FIRST_LIST.match(text)
    try:
        items = json.loads(found[0]) if found else []
    except (ValueError, RecursionError):
        return []
    if not all(isinstance(item, str) for item in items):
        return []
    return list(dict.fromkeys(map(normalize_answer, items)))


def published_score(predictions: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """The released evaluator's totals for answers and gold answers, one of each a (passage, type) row.

    Gold answers go through the same parser, so that what it cannot read is missing from the recall.
    0.0 where there is nothing to divide by. Raises ValueError if the lengths differ, where the
    released code drops the surplus.
    """
    return _score(list(map(published_parse, predictions)), list(map(published_parse, golds)), RELEASED_SMOOTHING)


def correct_score(predictions: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """The published score with no answer lost: both sides are read by `parse_answer`.

    Equal to `published_score`, but for its smoothing, where all answers are plain JSON lists of non-blank strings.
    Empty and blank strings count for nothing. 0.0 where there is nothing to divide by: a perfect
    score needs an entity. Raises ValueError if the lengths differ.
    """
    return _score(list(map(_read_entities, predictions)), list(map(_read_entities, golds)))


def exact_span_score(
    predictions: Sequence[Collection[Span]],
    golds: Sequence[Collection[Span]],
) -> dict[str, float]:
    """Strict score over the sets of (start, end, label) of each document: right is what is equal in all three.

    A span given twice counts once. 0.0 where there is nothing to divide by. Raises ValueError if
    the lengths differ.
    """
    return _score(predictions, golds)


def published_counts(prediction: str, gold: str) -> Counts:
    """One row as the released evaluator counts it."""
    return _counts(published_parse(prediction), published_parse(gold))


def correct_counts(prediction: str, gold: str) -> Counts:
    """One row as `correct_score` counts it."""
    return _counts(_read_entities(prediction), _read_entities(gold))


def span_counts(prediction: Collection[tuple[int, int]], gold: Collection[tuple[int, int]]) -> Counts:
    """Spans of one type that are equal in start and end."""
    return _counts(prediction, gold)


def partial_counts(prediction: Collection[tuple[int, int]], gold: Collection[tuple[int, int]]) -> Counts:
    """Spans of one type, where one that overlaps a gold span is half right (SemEval-2013 task 9, "partial").

    Equal spans are paired first, then each other span with the first gold span that it overlaps and that has none.
    """
    equal = set(prediction) & set(gold)
    left = sorted(set(gold) - equal)
    halves = 0
    for start, end in sorted(set(prediction) - equal):
        found = next((span for span in left if span[0] < end and start < span[1]), None)
        if found:
            left.remove(found)
            halves += 1
    return Counts(len(equal) + halves / 2, len(set(prediction)), len(set(gold)))


def score_of(counts: Counts, smoothing: float = 0.0) -> dict[str, float]:
    """Micro precision, recall and F1 of what all rows have together, `smoothing` added to each denominator."""
    correct, predicted, expected = counts
    if not correct:
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    precision = correct / (predicted + smoothing)
    recall = correct / (expected + smoothing)
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / (precision + recall + smoothing)}


def _read_entities(answer: str) -> set[str]:
    return {normalize_answer(item.text) for item in parse_answer(answer).items}


def _counts(prediction: Collection[Hashable], gold: Collection[Hashable]) -> Counts:
    predicted, expected = set(prediction), set(gold)
    return Counts(len(predicted & expected), len(predicted), len(expected))


def _score(
    predictions: Sequence[Collection[Hashable]],
    golds: Sequence[Collection[Hashable]],
    smoothing: float = 0.0,
) -> dict[str, float]:
    if len(predictions) != len(golds):
        raise ValueError(f"expected one prediction for each gold row, found {len(predictions)} for {len(golds)}")
    return score_of(total(map(_counts, predictions, golds)), smoothing)


def total(rows: Iterable[Counts]) -> Counts:
    """The sums of the rows' counts."""
    listed = list(rows)
    return Counts(*(sum(column) for column in zip(*listed, strict=True))) if listed else Counts(0, 0, 0)
