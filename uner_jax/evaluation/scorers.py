"""Strict entity-level micro precision, recall and F1: as published, and as they should be.

`published_*` repeats the released evaluator (universal-ner/universal-ner, `src/eval/evaluate.py`;
arXiv 2308.03279, section 5) to the last bit, for numbers that stand beside the paper's.
`correct_score` counts the same way but loses no answer, and `exact_span_score` counts spans by
position. All count per row and add up the rows; all return floats "precision", "recall", "f1".
"""

import json
import re
import string
from collections.abc import Collection, Hashable, Sequence

from uner_jax.extraction.answers import parse_answer

Span = tuple[int, int, str]

_FIRST_LIST = re.compile(r"\[.*?\]")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The released evaluator adds it to every denominator: its best score is 0.99999999995, not 1.
_RELEASED_SMOOTHING = 1e-10


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
    return _score(list(map(published_parse, predictions)), list(map(published_parse, golds)), _RELEASED_SMOOTHING)


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


def _read_entities(answer: str) -> set[str]:
    return {normalize_answer(item.text) for item in parse_answer(answer).items}


def _score(
    predictions: Sequence[Collection[Hashable]],
    golds: Sequence[Collection[Hashable]],
    smoothing: float = 0.0,
) -> dict[str, float]:
    """Micro precision, recall and F1 over rows of sets, `smoothing` added to each denominator."""
    if len(predictions) != len(golds):
        raise ValueError(f"expected one prediction for each gold row, found {len(predictions)} for {len(golds)}")
    rows = [(set(prediction), set(gold)) for prediction, gold in zip(predictions, golds, strict=True)]
    correct = sum(len(prediction & gold) for prediction, gold in rows)
    predicted = sum(len(prediction) for prediction, _ in rows)
    expected = sum(len(gold) for _, gold in rows)
    if not correct:
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    precision = correct / (predicted + smoothing)
    recall = correct / (expected + smoothing)
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / (precision + recall + smoothing)}
